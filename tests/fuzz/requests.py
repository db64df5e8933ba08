"""Malformed requests: messages filled at random by their descriptors, or good ones with a field changed, then damaged."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import Any

from csm.backbone.v1 import backbone_pb2
from csm.codec.v1 import codec_pb2
from csm.speech.v1 import speech_pb2
from csm.tokenizer.v1 import tokenizer_pb2
from csm.voice.v1 import voice_pb2
from csm.watermark.v1 import watermark_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fuzz.good_calls import CODEBOOKS, GOOD_CALLS

SERVICES = {
    "gateway": (speech_pb2.DESCRIPTOR, voice_pb2.DESCRIPTOR),
    "tokenizer": (tokenizer_pb2.DESCRIPTOR,),
    "backbone": (backbone_pb2.DESCRIPTOR,),
    "codec": (codec_pb2.DESCRIPTOR,),
    "watermark": (watermark_pb2.DESCRIPTOR,),
}
TEXTS = (
    "", " ", "Hello there.", "No. Yes!", "[1]", "<|end_of_text|>", "\0", "\u202e\u200b\ufeff", "😀" * 7, "a" * 5000,
    "¿Qué?", "€30 50% ½", "\U0010ffff", "\n\t\r", "<break time='9s'/>", "{}" * 50, "readiness",
)  # fmt: skip
INTS = (0, 1, 2, 3, 24_000, 80, -1, 2**31 - 1, -(2**31), 2050, 2051, 65_535)
FLOATS = (0.0, 0.9, 1.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"))
_TIMEOUTS_S = (0.02, 0.2, 0.2, 1.0, 3.0)
_GOOD_TIMEOUTS_S = (0.2, 3.0, 3.0)
_GOOD = 0.25  # of the calls of a method that a good call is known of
ENDS = ("end", "end", "end", "end", "cancel", "leave", "half", "nothing")


@dataclass(frozen=True)
class Call:
    """messages: raw, to be sent in this order. end: how the caller goes on then. is_stream: it may send several."""

    service: str
    method: str
    messages: list[bytes]
    end: str
    timeout_s: float
    metadata: tuple[tuple[str, str], ...]
    is_stream: bool


def methods_of(service: str) -> list[MethodDescriptor]:
    """All methods of a process."""
    return [method for file in SERVICES[service] for of in file.services_by_name.values() for method in of.methods]


def path_of(method: MethodDescriptor) -> str:
    """As gRPC writes it."""
    return f"/{method.containing_service.full_name}/{method.name}"


class Generator:
    """The same calls for the same seed."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._methods = [(service, method) for service in SERVICES for method in methods_of(service)]

    def call(self) -> Call:
        service, method = self._random.choice(self._methods)
        good = GOOD_CALLS.get(method.full_name)
        if good is not None and self._random.random() < _GOOD:
            changes, timeouts = self._random.random() < 0.5, _GOOD_TIMEOUTS_S
            messages = [self._altered(message, changes) for message in self._random.choice(good)]
        else:
            timeouts = _TIMEOUTS_S
            count = self._random.choice((0, 1, 2, 3, 8)) if method.client_streaming else 1
            messages = [self._raw(method, at) for at in range(count)]
        return Call(
            service,
            path_of(method),
            messages,
            self._random.choice(ENDS),
            self._random.choice(timeouts),
            self._random.choice(
                ((), (), (("authorization", "Bearer x"),), (("traceparent", "00-zz"), ("x", "y" * 2000)))
            ),
            method.client_streaming,
        )

    def _raw(self, method: MethodDescriptor, at: int) -> bytes:
        message = GetMessageClass(method.input_type)()
        self._fill(message, 0)
        self._aim(message, at)
        data: bytes = message.SerializeToString()
        if self._random.random() < 0.3:
            data = self._damaged(data)
        return data

    def _altered(self, good: Any, changes: bool) -> bytes:
        """A good message; with `changes` half of them with one field changed, and a few damaged."""
        message = type(good)()
        message.CopyFrom(good)
        if changes and self._random.random() < 0.5:
            changed = message
            while inner := [value for field, value in changed.ListFields() if isinstance(value, Message)]:
                if self._random.random() < 0.3:
                    break
                changed = self._random.choice(inner)
            if changed.DESCRIPTOR.fields:
                self._put(changed, self._random.choice(list(changed.DESCRIPTOR.fields)), 3)
        data: bytes = message.SerializeToString()
        return self._damaged(data) if changes and self._random.random() < 0.2 else data

    def _aim(self, message: Any, at: int) -> None:
        """Make some messages good enough to get past the first checks."""
        if self._random.random() < 0.5:
            return
        name = message.DESCRIPTOR.full_name
        if name in ("csm.codec.v1.DecodeRequest", "csm.watermark.v1.EmbedRequest"):
            if at == 0:
                message.Clear()
                message.start.SetInParent()
                if "watermark" in name:
                    message.start.format.encoding = 2
                    message.start.format.sample_rate_hz = 24_000
                    message.start.format.channels = 1
            elif "codec" in name:
                message.Clear()
                message.frames.frames.add(codes=[self._random.randrange(2048) for _ in range(CODEBOOKS)])
            else:
                message.Clear()
                message.audio.data = self._bytes(4 * 480)
        elif hasattr(message, "utterance"):
            message.Clear()
            message.utterance.text = self._random.choice(TEXTS)
            message.utterance.max_audio_ms = self._random.choice((80, 160, 400))
        elif name == "csm.backbone.v1.GenerateRequest":
            message.ClearField("generated")
            message.max_frames = self._random.choice((1, 2, 5))

    def _fill(self, message: Any, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if self._random.random() < (0.4 if depth < 5 else 1.0):
                continue
            self._put(message, field, depth)

    def _put(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        """A random value into one field."""
        if field.is_repeated:
            self._fill_list(getattr(message, field.name), field, depth)
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            self._fill(inner, depth + 1)
        else:
            self._set(message, field)

    def _fill_list(self, values: Any, field: FieldDescriptor, depth: int) -> None:
        for _ in range(self._random.choice((0, 1, 1, 2, 3, 40))):
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                key, value = (self._value(field.message_type.fields_by_name[name]) for name in ("key", "value"))
                values[key] = value
            elif field.message_type is not None:
                self._fill(values.add(), depth + 1)
            else:
                values.append(self._value(field))

    def _set(self, message: Any, field: FieldDescriptor) -> None:
        try:
            setattr(message, field.name, self._value(field))
        except ValueError:
            pass  # outside the field's type

    def _value(self, field: FieldDescriptor) -> Any:
        if field.type == field.TYPE_STRING:
            return self._random.choice(TEXTS)
        if field.type == field.TYPE_BYTES:
            return self._bytes(self._random.choice((0, 1, 43, 44, 960, 9600)))
        if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
            return self._random.choice(FLOATS)
        if field.type == field.TYPE_BOOL:
            return self._random.random() < 0.5
        if field.type == field.TYPE_ENUM:
            return self._random.choice((0, 1, 2, 3, 7, -1, 2**31 - 1))
        value = self._random.choice(INTS)
        return abs(value) if field.type in (field.TYPE_UINT32, field.TYPE_UINT64, field.TYPE_FIXED64) else value

    def _bytes(self, size: int) -> bytes:
        kind = self._random.randrange(4)
        if kind == 0:
            return bytes(size)
        if kind == 1:
            return self._random.randbytes(size)
        samples = struct.pack("<f", 0.1) * (size // 4)
        if kind == 2:
            return samples
        rate = self._random.choice((8_000, 24_000, 48_000, 0, 2**32 - 1))
        fmt = struct.pack(
            "<HHIIHH", self._random.choice((1, 3)), 1, rate, rate & 0xFFFF, 4, self._random.choice((16, 32))
        )
        announced = self._random.choice((len(samples), 0, 2**32 - 1))
        return (
            b"RIFF" + struct.pack("<I", 36 + len(samples)) + b"WAVEfmt " + struct.pack("<I", 16) + fmt
            + b"data" + struct.pack("<I", announced) + samples
        )  # fmt: skip

    def _damaged(self, data: bytes) -> bytes:
        damaged = bytearray(data or b"\0")
        for _ in range(self._random.choice((1, 1, 2, 8))):
            at, kind = self._random.randrange(len(damaged)), self._random.randrange(4)
            if kind == 0:
                damaged[at] = self._random.randrange(256)
            elif kind == 1:
                del damaged[at:]
            elif kind == 2:
                damaged[at:at] = self._random.randbytes(self._random.choice((1, 5, 300)))
            else:
                damaged[at:at] = damaged[: self._random.randrange(len(damaged) + 1)]
            if not damaged:
                damaged = bytearray(b"\xff")
        return bytes(damaged[: 1 << 20])
