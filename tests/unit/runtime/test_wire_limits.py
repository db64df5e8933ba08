"""What is counted in a message's bytes, held against messages that protobuf itself wrote and what it can read."""

import random

import pytest
from csm.backbone.v1 import backbone_pb2
from csm.codec.v1 import codec_pb2
from csm.speech.v1 import speech_pb2
from google.protobuf.message import DecodeError

from services.runtime import wire_limits
from services.runtime.wire_limits import TooManyFieldsError, check, layout_of


def generate(frames):
    request = backbone_pb2.GenerateRequest()
    for _ in range(frames):
        request.prompt.add().audio.frames.add(codes=range(2016, 2048))
    return request


def test_the_longest_prompt_is_far_below_the_limits():
    data = generate(2048).SerializeToString()
    check(data, layout_of(backbone_pb2.GenerateRequest.DESCRIPTOR))


@pytest.mark.parametrize("fields", [wire_limits.MAX_FIELDS - 10, wire_limits.MAX_FIELDS + 10])
def test_fields_are_counted_at_every_depth(fields):
    request = codec_pb2.DecodeRequest()
    for _ in range(fields):
        request.frames.frames.add()
    data, layout = request.SerializeToString(), layout_of(codec_pb2.DecodeRequest.DESCRIPTOR)
    if fields < wire_limits.MAX_FIELDS:
        return check(data, layout)
    with pytest.raises(TooManyFieldsError, match="fields"):
        check(data, layout)
    with pytest.raises(TooManyFieldsError, match="fields"):  # also before a malformed end
        check(data + b"\x00", layout)


def test_packed_numbers_are_counted():
    request = generate(1)
    request.prompt[0].audio.frames[0].codes.extend([1] * (wire_limits.MAX_PACKED_BYTES + 1))
    with pytest.raises(TooManyFieldsError, match="numbers"):
        check(request.SerializeToString(), layout_of(backbone_pb2.GenerateRequest.DESCRIPTOR))


def test_audio_is_one_field_however_long():
    request = speech_pb2.SynthesizeRequest()
    request.utterance.context.add().audio.wav = bytes(1 << 20)
    layout = layout_of(speech_pb2.SynthesizeRequest.DESCRIPTOR)
    check(request.SerializeToString(), layout)
    assert layout.has_bytes and not layout_of(backbone_pb2.GenerateRequest.DESCRIPTOR).has_bytes


def test_no_message_that_passes_unpacks_to_more_than_was_counted():
    """Damaged messages: whatever protobuf reads of them was counted."""
    seed = random.Random(7)
    layout, read = layout_of(backbone_pb2.GenerateRequest.DESCRIPTOR), 0
    for _ in range(3000):
        data = bytearray(generate(seed.randrange(1, 60)).SerializeToString())
        for _ in range(seed.randrange(3)):
            data[seed.randrange(len(data))] = seed.randrange(256)
        try:
            message = backbone_pb2.GenerateRequest.FromString(bytes(data))
        except DecodeError:
            message = None
        try:
            check(bytes(data), layout, max_fields=64)
        except TooManyFieldsError:
            continue
        if message is not None:
            read += 1
            assert len(message.prompt) + sum(len(part.audio.frames) for part in message.prompt) <= 64
    assert read > 500
