"""From an id, a part of it or nothing to a trace: what `csm up` keeps, and files that a collector writes."""

import base64
import json
import os

import pytest
from google.protobuf import json_format
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from gateway.cli import state
from gateway.cli.trace.lookup import TraceError, find, known
from gateway.cli.trace.otlp_file import MalformedFile, read_trace, requests_in
from gateway.cli.trace.spans import Span, TraceStore

A, B, C = "a" * 32, "abcd" + "0" * 28, "c" * 32
ROOT = Span("gateway", "Speech/Say", "server", "01", "", 10**18, 10**18 + 5)


def exported(service="csm-gateway", code=StatusCode.OK, links=()):
    """(one finished span of the SDK, with an event, an error and attributes of every kind; what its exporter sends)"""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    kind = SpanKind.INTERNAL if links else SpanKind.SERVER
    with provider.get_tracer("t").start_as_current_span("Speech/Say", kind=kind, links=links) as span:
        span.set_attributes({"csm.bundle": "b", "csm.frames": 2**40, "csm.share": 0.5, "csm.ok": True})
        span.add_event("audio", {"csm.position_ms": 1.5})
        if code is StatusCode.ERROR:
            span.set_status(Status(code, "INTERNAL: <b>"))
    return span, encode_spans(exporter.get_finished_spans())


def as_collector_writes(request):
    """OTLP JSON: ids as hexadecimal, enums as numbers, 64-bit numbers as text."""

    def hexed(value):
        if isinstance(value, list):
            return [hexed(item) for item in value]
        if not isinstance(value, dict):
            return value
        ids = ("traceId", "spanId", "parentSpanId")
        return {key: base64.b64decode(item).hex() if key in ids else hexed(item) for key, item in value.items()}

    return hexed(json_format.MessageToDict(request, use_integers_for_enums=True))


def write(path, *documents, indent=None):
    path.write_text("".join(json.dumps(document, indent=indent) + "\n" for document in documents))
    return path


def test_what_a_collector_wrote_is_what_the_sdk_sent(tmp_path):
    (one, first), (two, second) = exported(code=StatusCode.ERROR), exported("csm-codec")
    metrics = {"resourceMetrics": [{"scopeMetrics": []}]}
    path = write(tmp_path / "s.json", as_collector_writes(first), metrics, as_collector_writes(second))
    trace_id = f"{one.context.trace_id:032x}"
    (span,) = read_trace(path, trace_id)
    assert (span.service, span.name, span.kind, span.error) == ("gateway", "Speech/Say", "server", "INTERNAL: <b>")
    assert (span.span_id, span.start_ns, span.end_ns) == (f"{one.context.span_id:016x}", one.start_time, one.end_time)
    assert span.attributes == {"csm.bundle": "b", "csm.frames": 2**40, "csm.share": 0.5, "csm.ok": True}
    assert [(event.name, event.attributes) for event in span.events] == [("audio", {"csm.position_ms": 1.5})]
    assert list(requests_in(path)) == [trace_id], "the codec's is no request"
    assert [span.service for span in read_trace(path, f"{two.context.trace_id:032x}")] == ["codec"]
    assert read_trace(path, A) == []


@pytest.mark.parametrize(
    "layout",
    [
        "pretty",
        "pretty below a blank line",
        "list",
        "list on a line",
        "capitals",
        "half a line",
        "blank lines",
        "Tempo",
        "Tempo's second",
        "Jaeger",
        "base64",
    ],
)
def test_other_layouts_of_the_same(tmp_path, layout):
    one, request = exported()
    trace_id, path = f"{one.context.trace_id:032x}", tmp_path / "s.json"
    document = as_collector_writes(request)
    match layout:
        case "pretty":
            write(path, document, indent=2)
        case "pretty below a blank line":
            path.write_text("\n" + json.dumps(document, indent=2))
        case "list":
            write(path, [document, document], indent=1)
        case "list on a line":
            write(path, [document])
        case "capitals":
            write(path, json.loads(json.dumps(document).replace(trace_id, trace_id.upper())))
        case "half a line":
            path.write_text(json.dumps(document) + "\n" + json.dumps(document)[:-20])
        case "Tempo":  # /api/traces/ID
            write(path, {"batches": json_format.MessageToDict(request)["resourceSpans"]})
        case "Tempo's second":  # /api/v2/traces/ID
            write(path, {"trace": document, "metrics": {}}, indent=2)
        case "Jaeger":  # /api/v3/traces, a document for each chunk
            write(path, {"result": {"resourceSpans": []}}, {"result": document})
        case "base64":
            write(path, {"resourceSpans": []}, json_format.MessageToDict(request))
        case "blank lines":
            path.write_text("\n\n" + json.dumps(document) + "\n\n")
    assert {span.service for span in read_trace(path, trace_id)} == {"gateway"}
    assert list(requests_in(path)) == [trace_id]


def test_a_step_that_is_linked_is_found_by_the_request_it_served(tmp_path):
    one, first = exported()
    _, step = exported("csm-backbone", links=[Link(one.get_span_context())])
    path = write(tmp_path / "s.json", as_collector_writes(first), as_collector_writes(step))
    assert sorted((span.service, span.linked) for span in read_trace(path, f"{one.context.trace_id:032x}")) == [
        ("backbone", True),
        ("gateway", False),
    ]


def test_anothers_gateway_is_not_ours(tmp_path):
    _, request = exported("gateway")
    assert not requests_in(write(tmp_path / "s.json", as_collector_writes(request)))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no spans"),
        (b"hello", "line 1: no JSON"),
        (b'{"resourceSpans": []}\n{"csm-gateway"\n', "line 2: no JSON"),
        (b"7", "is no batch of OTLP spans"),
        (b'{"resourceSpans": 7}', "is no batch of OTLP spans"),
        (b'{"spans": []}', "holds no spans"),
        (b'{"resourceSpans": [7]}', "line 1: "),
        (
            b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}',
            "traceId: 'xyz' is not hexadecimal",
        ),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "soon"}]}]}]}', "soon"),
        (b"\x28\xb5\x2f\xfd\x00", "no text; a compressed or binary file"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
async def test_a_file_that_is_malformed_is_one_line(tmp_path, content, told):
    path = tmp_path / "s.json"
    path.write_bytes(content)
    with pytest.raises(MalformedFile, match=str(path)) as caught:
        requests_in(path)
    assert told in str(caught.value) and len(str(caught.value).splitlines()) == 1
    with pytest.raises(TraceError):
        await find(None, path, tmp_path)


async def test_of_a_file_the_newest_request_or_the_last_said(tmp_path):
    (one, first), (two, second) = exported(), exported()
    old, new = (f"{span.context.trace_id:032x}" for span in (one, two))
    path = write(tmp_path / "s.json", as_collector_writes(second), as_collector_writes(first))
    found = await find(None, path, tmp_path)
    assert (found.trace_id, found.chosen) == (new, f"the newest of 2 in {path}")
    state.save_last_request(state.LastRequest(old, None), tmp_path)
    assert (await find(None, path, tmp_path)).trace_id == old
    assert (await find(new[:8], path, tmp_path)).trace_id == new
    assert [found.trace_id for found in known(path, tmp_path)] == [new, old]
    with pytest.raises(TraceError, match=f"no trace {A} in .*--list --file"):
        await find(A, path, tmp_path)
    with pytest.raises(FileNotFoundError):
        await find(A, tmp_path / "none.json", tmp_path)


async def test_of_this_machine_the_last_said_a_part_of_an_id_or_a_header(tmp_path):
    store = TraceStore(tmp_path / "traces")
    for trace_id in (A, B):
        store.add(trace_id, ROOT)
    with pytest.raises(TraceError, match="none was made by `csm say` here"):
        await find(None, None, tmp_path)
    for wanted in (A, A.upper(), "aaaa", f"00-{A}-{'1' * 16}-01", f" {A}\n", "-".join((A[:8], A[8:]))):
        assert (await find(wanted, None, tmp_path)).trace_id == A
    state.save_last_request(state.LastRequest(B, str(store.folder)), tmp_path)
    found = await find(None, None, tmp_path)
    assert (found.trace_id, found.spans, found.chosen) == (B, [ROOT], "the last `csm say`")
    assert {found.trace_id for found in known(None, tmp_path)} == {A, B}
    for traces, why in (
        (None, "was for a gateway elsewhere: .*--file"),
        (str(store.folder), "may not have reached its gateway"),
    ):
        state.save_last_request(state.LastRequest(C, traces), tmp_path)
        with pytest.raises(TraceError, match=f"the last `csm say` {why}.*{C}"):
            await find(None, None, tmp_path)
    TraceStore(tmp_path / "traces").add(A[:31] + "b", ROOT)
    with pytest.raises(TraceError, match="2 traces begin with aaaa"):
        await find("aaaa", None, tmp_path)


async def test_the_trace_of_a_demo_lies_elsewhere(tmp_path):
    TraceStore(tmp_path / "demo" / "traces").add(A, ROOT)
    state.save_last_request(state.LastRequest(A, str(tmp_path / "demo" / "traces")), tmp_path)
    assert (await find(None, None, tmp_path)).spans == [ROOT]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (C, f"no trace {C} in .*/traces \\(1 kept there.*--list.*trace_id"),
        ("cccc", "no trace begins with cccc"),
        ("abc", "'abc' is no trace id: 32 hexadecimal digits"),
        ("../../etc/passwd", "is no trace id"),
        ("", "is no trace id"),
        (C + "0", "is no trace id"),
    ],
)
async def test_an_id_that_is_not_there_is_one_line_on_how_to_get_one(tmp_path, wanted, told):
    TraceStore(tmp_path / "traces").add(A, ROOT)
    with pytest.raises(TraceError, match=told) as caught:
        await find(wanted, None, tmp_path)
    assert len(str(caught.value).splitlines()) == 1


async def test_nothing_kept_is_told_apart(tmp_path):
    with pytest.raises(TraceError, match=f"no traces in {tmp_path}/traces: `csm up` keeps them there; .*--file"):
        await find(A, None, tmp_path)
    state.register(state.Running("127.0.0.1:5", os.getpid(), None), tmp_path)
    with pytest.raises(TraceError, match="OTEL_EXPORTER_OTLP_ENDPOINT; look there"):
        await find(A, None, tmp_path)


@pytest.mark.parametrize("line", ["no json", "{}", "[]", "7", '{"events": 7}', '{"events": [{}]}'])
async def test_a_damaged_trace_is_one_line(tmp_path, line):
    folder = tmp_path / "traces"
    folder.mkdir()
    (folder / f"{A}.jsonl").write_text(line + "\n")
    with pytest.raises(TraceError, match=r"\.jsonl: holds a line that is no span"):
        await find(A, None, tmp_path)


def test_a_state_that_cannot_be_written_or_read_is_no_reason_to_fail(tmp_path):
    (tmp_path / "file").write_text("")
    state.save_last_request(state.LastRequest(A, None), tmp_path / "file")
    assert state.last_request(tmp_path / "file") is None
    for content in ("", "{}", "[]", "{", '{"trace_id": 7, "traces": null}'):
        (tmp_path / "last_request.json").write_text(content)
        assert state.last_request(tmp_path) is None
    state.save_last_request(state.LastRequest(A, None), tmp_path)
    assert state.last_request(tmp_path) == state.LastRequest(A, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "last_request.json"]


@pytest.mark.parametrize("span_id", ["", "00" * 8, "01", "01" * 9])
def test_a_span_without_an_id_of_its_own_is_left_out(tmp_path, span_id):
    one, first = exported()
    document = as_collector_writes(first)
    alone = json.loads(json.dumps(document))
    alone["resourceSpans"][0]["scopeSpans"][0]["spans"][0] |= {"spanId": span_id, "kind": 3}
    path = write(tmp_path / "s.json", document, alone)
    assert [span.kind for span in read_trace(path, f"{one.context.trace_id:032x}")] == ["server"]
