"""Every metric of the system, by its OpenTelemetry name; docs/telemetry.md says what each tells.

Instruments that servers record into are module attributes. Values that an object already holds, such
as slots in use, are read when they are asked for: `observe(pool, "csm.codec.slots.active", read)`.

Units in braces are annotations: Prometheus names carry none, so `csm.codec.slots.active` is
`csm_codec_slots_active` there, by whichever road it came. Labels have a few values each; those of tokens are bounded
by `gateway.token_metrics`. Histograms that are recorded inside a call's span carry exemplars, its trace, where metrics
leave by OTLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from opentelemetry import metrics

T = TypeVar("T")

# Seconds. Speech is a matter of tens of milliseconds, an utterance of tens of seconds.
_WORK_S = [0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 20, 40]
_CALL_S = [*_WORK_S, 90, 180, 360, 600]
# Fine around what a frame may cost: at 80 ms speech is made as fast as it is heard.
_ENGINE_S = [0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.2, 0.5, 1, 2, 5, 10]
_BUFFERS_S = [0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2]  # of what players buffer
_FACTORS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.5, 2, 4]
_BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512, 768, 1024]

_meter = metrics.get_meter("csm")


def _histogram(name: str, unit: str, description: str, bounds: Sequence[float]) -> metrics.Histogram:
    return _meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)


# Every server.
rpc_duration = _histogram("rpc.server.call.duration", "s", "a call, from its request to its status", _CALL_S)
event_loop_lag = _histogram("csm.event_loop.lag", "s", "how late the event loop came back from a short sleep", _WORK_S)

# The stages, each of its own work.
stage_first_output = _histogram(
    "csm.stage.first_output.duration", "s", "a call's start to its first output, in the stage", _WORK_S
)
stage_chunk = _histogram("csm.stage.chunk.duration", "s", "work on one chunk in the stage", _WORK_S)
stage_queue = _histogram(
    "csm.stage.queue.duration",
    "s",
    "from the hand-over of a chunk to its result, less the time of its own passes",
    _WORK_S,
)

# The gateway, of the whole request.
request_first_output = _histogram(
    "csm.request.first_output.duration", "s", "the request's start to a stage's first output", _WORK_S
)
time_to_first_audio = _histogram(
    "csm.request.time_to_first_audio", "s", "the request's start to the first marked audio", _WORK_S
)
real_time_factor = _histogram(
    "csm.request.real_time_factor", "1", "time that the stages took over length of the audio", _FACTORS
)
finished = _meter.create_counter("csm.request.finished", "{request}", "utterances made to their end")
audio = _meter.create_counter("csm.request.audio", "s", "length of the audio given to callers")
buffer_needed = _histogram(
    "csm.stream.buffer_needed", "s", "a player's buffer with which this stream has no underrun", _BUFFERS_S
)
underruns = _meter.create_counter(
    "csm.stream.underruns",
    "{underrun}",
    "times that a listener with CSM_LISTENER_BUFFER_MS of buffer has nothing to play",
)
refusals = _meter.create_counter(
    "csm.gateway.refusals", "{call}", "calls refused for want of a token, or beyond a token's limits"
)
token_characters = _meter.create_counter(
    "csm.token.characters", "{character}", "text that was spoken or is being spoken for a token"
)
token_audio = _meter.create_counter("csm.token.audio", "s", "length of the audio given to a token's callers")
token_refusals = _meter.create_counter("csm.token.refusals", "{call}", "calls refused beyond a token's limits")
audit_records = _meter.create_counter("csm.audit.records", "{record}", "records of marked utterances")
audit_verifications = _meter.create_counter(
    "csm.audit.verifications", "{utterance}", "utterances whose mark was looked for after they were spoken"
)

resumes = _meter.create_counter(
    "csm.gateway.resumes", "{resume}", "streams opened again on another replica after their stage failed"
)
ejections = _meter.create_counter(
    "csm.gateway.ejections", "{ejection}", "replicas taken out of use because they did not answer"
)

# The HTTP process.
http_duration = _histogram("http.server.request.duration", "s", "an HTTP request, to the end of its answer", _CALL_S)
http_first_audio = _histogram(
    "csm.http.time_to_first_audio", "s", "a request for speech, from its body to its first audio", _WORK_S
)

# The generator.
backbone_queue = _histogram("csm.backbone.queue.duration", "s", "a request's wait for a slot", _ENGINE_S)
backbone_prefill = _histogram("csm.backbone.prefill.duration", "s", "from a slot to the prompt being read", _ENGINE_S)
frame_step = _histogram("csm.backbone.frame_step.duration", "s", "one frame for all slots", _ENGINE_S)
batch_size = _histogram("csm.backbone.batch.size", "{request}", "requests that one step made a frame for", _BATCHES)

# The tokenizer.
cache_lookups = _meter.create_counter(
    "csm.tokenizer.cache.lookups", "{lookup}", "clips looked up among those encoded before"
)

# Name → (unit, description) of what `observe` takes.
_GAUGES = {
    "csm.build.info": ("{server}", "always 1; what is served by what software, with what precision and on what device"),
    "csm.ready": ("{server}", "1 while the health service says that calls can be served, else 0"),
    "csm.gateway.streams.active": ("{stream}", "utterances being made"),
    "csm.gateway.streams.capacity": ("{stream}", "utterances that may be made at once"),
    "csm.gateway.conversations.active": ("{call}", "conversations that are open"),
    "csm.gateway.conversations.capacity": ("{call}", "conversations that may be open at once"),
    "csm.gateway.verifications.active": ("{call}", "clips being verified"),
    "csm.gateway.verifications.capacity": ("{call}", "clips that may be verified at once"),
    "csm.gateway.tokens.stale": ("{file}", "1 while the file of tokens cannot be used and what it said before holds"),
    "csm.http.requests.active": ("{request}", "HTTP requests being served, health checks aside"),
    "csm.http.requests.capacity": ("{request}", "HTTP requests that may be served at once"),
    "csm.tokenizer.encodings.active": ("{call}", "EncodeAudio calls inside, the waiting ones included"),
    "csm.tokenizer.encodings.capacity": ("{call}", "EncodeAudio calls that may be inside"),
    "csm.tokenizer.cache.size": ("By", "memory of the clips kept"),
    "csm.tokenizer.cache.capacity": ("By", "memory that kept clips may take"),
    "csm.backbone.slots.active": ("{slot}", "requests being generated"),
    "csm.backbone.slots.capacity": ("{slot}", "requests that may be generated at once"),
    "csm.backbone.queue.depth": ("{request}", "requests that wait for a slot"),
    "csm.backbone.queue.capacity": ("{request}", "requests that may wait"),
    "csm.backbone.blocks.used": ("{block}", "blocks of the key-value cache that live requests hold"),
    "csm.backbone.blocks.idle": (
        "{block}",
        "blocks that no request holds, kept in the prefix cache until they are needed",
    ),
    "csm.backbone.blocks.capacity": ("{block}", "blocks of the key-value cache"),
    "csm.codec.slots.active": ("{slot}", "streams being decoded"),
    "csm.codec.slots.capacity": ("{slot}", "streams that may be decoded at once"),
    "csm.watermark.streams.active": ("{stream}", "streams being marked"),
    "csm.watermark.streams.capacity": ("{stream}", "streams that may be marked at once"),
    "csm.watermark.detections.active": ("{call}", "Detect calls inside"),
    "csm.watermark.detections.capacity": ("{call}", "Detect calls that may be inside"),
}
_COUNTERS = {
    "csm.backbone.prompt.tokens": ("{token}", "positions of all prompts admitted: text tokens and frames"),
    "csm.backbone.prompt.prefix_hit_tokens": ("{token}", "of these: found in the prefix cache"),
    "csm.watermark.eager_passes": ("{pass}", "passes on a GPU without the graphs that were captured for them"),
}
# Counters that begin at 0 when their service does: one that first appears with its first count hides it from rate().
_ZEROS = {
    "gateway": [
        (audio, {}),
        (underruns, {}),
        *(
            (finished, {"finish_reason": reason})
            for reason in ("END_OF_SPEECH", "MAX_LENGTH", "SILENCE", "INTERRUPTED", "EMPTY")
        ),
        *(
            (refusals, {"reason": reason})
            for reason in ("NO_TOKEN", "WRONG_TOKEN", "TOKEN_STREAMS", "TOKEN_CONVERSATIONS", "TOKEN_CHARACTERS")
        ),
        *((audit_records, {"outcome": outcome}) for outcome in ("written", "lost")),
        *((audit_verifications, {"result": result}) for result in ("found", "not_found", "unsure", "failed")),
        *(
            (resumes, {"stage": stage, "outcome": outcome})
            for stage in ("backbone", "codec", "watermark")
            for outcome in ("resumed", "refused", "exhausted")
        ),
        *((ejections, {"stage": stage}) for stage in ("tokenizer", "backbone", "codec", "watermark")),
    ],
    "tokenizer": [(cache_lookups, {"result": result}) for result in ("hit", "miss")],
}


class _Reader(NamedTuple):
    read: Callable[[Any], float]
    labels: tuple[tuple[str, str], ...]


_observed: dict[str, WeakKeyDictionary[Any, _Reader]] = {}


def init_counters(service: str) -> None:
    """Show the counters of `service`, all at 0. Once, when the exporters are there."""
    for counter, labels in _ZEROS.get(service, ()):
        counter.add(0, labels)


def observe(owner: T, name: str, read: Callable[[T], float], labels: Mapping[str, str] | None = None) -> None:
    """Export `read(owner)` under `name` for as long as `owner` lives; of several owners with the same labels, the sum.

    read: called by whatever thread exports. It must not hold the owner itself, which would never go.
    """
    if name not in _observed:
        readers = _observed[name] = WeakKeyDictionary()
        make, of = (
            (_meter.create_observable_gauge, _GAUGES)
            if name in _GAUGES
            else (_meter.create_observable_counter, _COUNTERS)
        )
        make(name, [lambda _: _read(readers)], *of[name])
    _observed[name][owner] = _Reader(read, tuple((labels or {}).items()))


def observe_admission(owner: Any, name: str) -> None:
    """An Admission's permits: `<name>.active` and `<name>.capacity`."""
    observe(owner, f"{name}.active", lambda admission: admission.in_flight)
    observe(owner, f"{name}.capacity", lambda admission: admission.limit)


def _read(readers: WeakKeyDictionary[Any, _Reader]) -> Iterable[metrics.Observation]:
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for owner, (read, labels) in list(readers.items()):
        sums[labels] = sums.get(labels, 0) + read(owner)
    return [metrics.Observation(value, dict(labels)) for labels, value in sums.items()]
