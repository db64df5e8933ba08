"""The spans of a request, as the gateway and its stages tell them."""

import grpc

from gateway.cli.trace.spans import Event, Span

MS = 10**6
T0 = 1_700_000_000 * 10**9
ID = "ab" * 16
STATUS = {code.value[0]: code.name for code in grpc.StatusCode}
SPEAK = "csm.speech.v1.SpeechService/StreamSynthesize"


def span(service, name, kind, span_id, parent, start_ms, end_ms, code=None, **more):
    more["attributes"] = {
        **more.get("attributes", {}),
        **({} if code is None else {"rpc.response.status_code": STATUS[code]}),
    }
    return Span(service, name, kind, span_id, parent, T0 + int(start_ms * MS), T0 + int(end_ms * MS), **more)


def call(stage, method, number, start_ms, end_ms, code=0, parent="root", error="", events=()):
    """Both sides of the gateway's call to a stage."""
    name = f"csm.{stage}.v1.{stage.title()}Service/{method}"
    rpc = {"rpc.method": name}
    return [
        span("gateway", name, "client", f"c{number}", parent, start_ms, end_ms, code, attributes=rpc, error=error),
        span(stage, name, "server", f"s{number}", f"c{number}", start_ms + 1, end_ms - 1, code, events=events),
    ]


def audio(*chunks):
    """Events of (at ms, position ms, duration ms, lead ms)."""
    names = ("csm.position_ms", "csm.duration_ms", "csm.lead_ms")
    return tuple(Event("audio", T0 + int(at * MS), dict(zip(names, rest, strict=True))) for at, *rest in chunks)


CHUNKS = audio((500, 0, 80, 0), (550, 80, 160, 30), (900, 240, 320, -160), (950, 560, 640, 270))
FACTS = {
    "csm.bundle": "embedded",
    "csm.seed": str(2**64 - 1),
    "csm.text_characters": 57,
    "csm.context_turns": 2,
    "csm.prompt_tokens": 63,
    "csm.frames": 15,
    "csm.finish_reason": "FINISH_REASON_END_OF_SPEECH",
    "csm.real_time_factor": 0.8333,
    "csm.underruns": 1,
    "csm.chunks": 4,
}


def root(code=0, span_id="root", parent="", start_ms=0, end_ms=1000, **more):
    more = {"attributes": FACTS, "events": CHUNKS} | more
    return span("gateway", SPEAK, "server", span_id, parent, start_ms, end_ms, code, **more)


def request(**more):
    return [
        *call("watermark", "Embed", 4, 100, 1000),
        *call("codec", "Decode", 3, 100, 990),
        *call("backbone", "Generate", 2, 20, 900, events=(Event("first_frame", T0 + 300 * MS),)),
        span("backbone", "queue", "internal", "q", "s2", 22, 40),
        span("backbone", "prefill", "internal", "p", "s2", 40, 250),
        *call("tokenizer", "Tokenize", 1, 1, 20),
        root(**more),
    ]
