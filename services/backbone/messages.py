"""Generate's messages: what a request asks for, checked, and the answers' numbers. Imports no torch."""

from __future__ import annotations

import math
import secrets

from csm.backbone.v1 import backbone_pb2
from csm.common.v1 import common_pb2

from services.backbone.chunk_sizer import ChunkSizer
from services.backbone.prompt import Audio, Prompt, PromptError, PromptLimits, Text
from services.backbone.request import FinishReason, Sampling, SequenceState
from services.runtime.errors import InvalidArgument

_MAX_CHUNK_FRAMES = 64
_MAX_LISTENER_BUFFER_S = 10
_MAX_TEMPERATURE = 2.0
_MIN_TEMPERATURE = 1e-4  # as good as greedy; logits divided by much less overflow fp32
FINISH_REASONS = {
    FinishReason.END_OF_SPEECH: common_pb2.FINISH_REASON_END_OF_SPEECH,
    FinishReason.MAX_LENGTH: common_pb2.FINISH_REASON_MAX_LENGTH,
    FinishReason.CANCELLED: common_pb2.FINISH_REASON_CANCELLED,
}


def read_prompt(request: backbone_pb2.GenerateRequest, limits: PromptLimits, frame_limit: int) -> tuple[Prompt, int]:
    """The prompt and the cap on its frames. frame_limit: the server's own cap. Raises: InvalidArgument."""
    # Before any list is built: an empty frame is two bytes, and millions fit a message. A prompt that is a
    # little too long gets an exact error below.
    tokens = prompt_tokens(request)
    if tokens > 4 * limits.max_seq_len:
        raise InvalidArgument("prompt", f"takes more than {4 * limits.max_seq_len} tokens, {limits.max_seq_len} fit")
    parts: list[Text | Audio] = []
    for index, part in enumerate(request.prompt):
        match part.WhichOneof("part"):
            case "text":
                parts.append(Text(part.text.ids))
            case "audio":
                parts.append(Audio([frame.codes for frame in part.audio.frames]))
            case _:
                raise InvalidArgument(f"prompt[{index}]", "must be text or audio")
    try:
        return limits.build(
            parts,
            [frame.codes for frame in request.generated],
            request.max_frames if request.HasField("max_frames") else None,
            frame_limit,
        )
    except PromptError as error:
        raise InvalidArgument(error.field, error.description) from None


def prompt_tokens(request: backbone_pb2.GenerateRequest) -> int:
    """Tokens that the request's prompt takes; those that end a segment are counted for all parts."""
    tokens = len(request.prompt) + len(request.generated)
    return tokens + sum(len(part.text.ids) + len(part.audio.frames) for part in request.prompt)


def read_sampling(request: backbone_pb2.GenerateRequest) -> Sampling:
    """Raises: InvalidArgument."""
    options = request.sampling
    temperature = options.temperature if options.HasField("temperature") else 0.9
    if not 0 < temperature <= _MAX_TEMPERATURE:  # written so that NaN fails too
        raise InvalidArgument(
            "sampling.temperature", f"is {temperature:g}, must be greater than 0 and at most {_MAX_TEMPERATURE:g}"
        )
    temperature = max(temperature, _MIN_TEMPERATURE)
    top_k = options.top_k if options.HasField("top_k") else 50
    if top_k < 1:
        raise InvalidArgument("sampling.top_k", f"is {top_k}, must be at least 1")
    if request.generated and not options.HasField("seed"):
        raise InvalidArgument("sampling.seed", "must be given with generated: it is the earlier stream's")
    seed = options.seed if options.HasField("seed") else secrets.randbits(64)
    return Sampling(temperature, top_k, seed)


def read_chunk_policy(policy: backbone_pb2.ChunkPolicy, frame_s: float) -> ChunkSizer:
    """Raises: InvalidArgument."""
    for index, size in enumerate(policy.ramp_frames):
        if not 1 <= size <= _MAX_CHUNK_FRAMES:
            raise InvalidArgument(f"chunk_policy.ramp_frames[{index}]", f"is {size}, must be 1 to {_MAX_CHUNK_FRAMES}")
    held_back = policy.held_back_frames if policy.HasField("held_back_frames") else None
    if held_back is not None and not 0 <= held_back <= _MAX_CHUNK_FRAMES:
        raise InvalidArgument("chunk_policy.held_back_frames", f"is {held_back}, must be 0 to {_MAX_CHUNK_FRAMES}")
    if not 0 <= (opening := policy.opening_frames) <= _MAX_CHUNK_FRAMES:
        raise InvalidArgument("chunk_policy.opening_frames", f"is {opening}, must be 0 to {_MAX_CHUNK_FRAMES}")
    listener_s = policy.listener_buffer.seconds + policy.listener_buffer.nanos / 1e9
    if not 0 <= listener_s <= _MAX_LISTENER_BUFFER_S:
        text = f"is {listener_s:g} s, must be 0 to {_MAX_LISTENER_BUFFER_S} s"
        raise InvalidArgument("chunk_policy.listener_buffer", text)
    return ChunkSizer(tuple(policy.ramp_frames), frame_s, held_back, opening, listener_s)


def started_message(seq: SequenceState) -> backbone_pb2.GenerateStarted:
    """Of a prefilled request."""
    request = seq.request
    return backbone_pb2.GenerateStarted(
        seed=request.sampling.seed,
        prompt_tokens=request.prefill_tokens - request.generated_frames,
        max_frames=request.max_frames,
        prefix_hit_tokens=seq.table.cached_tokens if seq.table is not None else 0,
    )


def finished_message(seq: SequenceState, frames: int) -> backbone_pb2.GenerateFinished:
    """Of a request that ended normally. frames: delivered by this call."""
    assert seq.finish and seq.admitted_s is not None
    assert seq.prefilled_s is not None and seq.ended_s is not None
    finished = backbone_pb2.GenerateFinished(finish_reason=FINISH_REASONS[seq.finish], frames=frames)
    finished.queue_duration.FromNanoseconds(_duration_ns(seq.admitted_s - seq.submitted_s))
    finished.prefill_duration.FromNanoseconds(_duration_ns(seq.prefilled_s - seq.admitted_s))
    finished.decode_duration.FromNanoseconds(_duration_ns(seq.ended_s - seq.prefilled_s))
    return finished


def _duration_ns(seconds: float) -> int:
    return math.floor(seconds * 1e9)
