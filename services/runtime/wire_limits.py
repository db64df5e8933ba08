"""Bounds what a message can unpack to, by counting fields in its bytes before they are parsed.

An empty submessage is two bytes on the wire and sixty in memory, so a message of 62 MiB can become 1.8 GB.
Parsing stops at the first malformed byte of a (sub)message, and so does the count there.
Format: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

# The largest request of ours, a prompt of 2,048 frames, has about 4,100 fields and 140 KB of packed numbers.
MAX_FIELDS = 16_384
MAX_PACKED_BYTES = 4 * 1024 * 1024

_VARINT, _FIXED64, _BYTES, _START_GROUP, _END_GROUP, _FIXED32 = range(6)


class TooManyFieldsError(ValueError):
    """The message says which limit it breaks."""


@dataclass
class Layout:
    """What a message type holds. messages: field number → layout; packed: numbers of repeated scalar fields."""

    messages: Mapping[int, Layout] = field(default_factory=dict)
    packed: frozenset[int] = frozenset()
    has_bytes: bool = False


@cache
def layout_of(descriptor: Any) -> Layout:
    """The layout of a `google.protobuf.descriptor.Descriptor`."""
    return _layout_of(descriptor, {})


def _layout_of(descriptor: Any, known: dict[str, Layout]) -> Layout:
    if descriptor.full_name in known:
        return known[descriptor.full_name]
    layout = known[descriptor.full_name] = Layout()
    inner = {f.number: _layout_of(f.message_type, known) for f in descriptor.fields if f.message_type is not None}
    layout.messages = inner
    layout.packed = frozenset(
        f.number
        for f in descriptor.fields
        if f.is_repeated and f.type not in (f.TYPE_MESSAGE, f.TYPE_STRING, f.TYPE_BYTES)
    )
    layout.has_bytes = any(f.type == f.TYPE_BYTES for f in descriptor.fields) or any(
        each.has_bytes for each in inner.values()
    )
    return layout


def check(
    data: bytes, layout: Layout, *, max_fields: int = MAX_FIELDS, max_packed_bytes: int = MAX_PACKED_BYTES
) -> None:
    """Raises: TooManyFieldsError. Takes a few milliseconds at most, whatever the size."""
    fields, packed = 0, 0
    todo = [(0, len(data), layout)]
    while todo:
        at, end, layout = todo.pop()
        try:
            while at < end:
                fields += 1
                tag, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at)
                kind, number = tag & 7, tag >> 3
                if number == 0:
                    break
                if kind == _BYTES:
                    length, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at)
                    if at + length > end:
                        break
                    inner = layout.messages.get(number)
                    if inner is not None:
                        todo.append((at, at + length, inner))
                    elif number in layout.packed:
                        packed += length
                    at += length
                elif kind == _VARINT:
                    _, at = _varint(data, at)
                elif kind == _FIXED64:
                    at += 8
                elif kind == _FIXED32:
                    at += 4
                elif kind not in (_START_GROUP, _END_GROUP):
                    break
                if fields > max_fields:
                    raise TooManyFieldsError(f"has more than {max_fields} fields")
                if packed > max_packed_bytes:
                    raise TooManyFieldsError(f"has more than {max_packed_bytes} bytes of numbers")
        except IndexError:
            continue  # cut off: the parser refuses it


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next field begins. Raises: IndexError at the end of `data`."""
    value = data[at]
    if value < 0x80:
        return value, at + 1
    value &= 0x7F
    for shift in range(7, 70, 7):
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
    raise IndexError("a number of more than ten bytes")
