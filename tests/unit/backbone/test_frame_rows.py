"""Frames as rows of bytes, and as messages: against protobuf's own."""

import itertools

import numpy as np
import pytest
from csm.backbone.v1 import backbone_pb2

from services.backbone.chunk_messages import ChunkMessages
from services.backbone.frame_rows import codes_of, rows_of
from services.backbone.prompt import Prompt


def draw(count, codebooks, bins):
    """Codes of frames of which none ends speech."""
    codes = np.random.default_rng(count).integers(0, bins, (count, codebooks))
    codes[0, -1] = 0
    codes[:, 0] |= 1
    codes[-1, 0] = bins - 1
    return codes


@pytest.mark.parametrize("codebooks", [1, 32])
def test_codes_come_back(codebooks):
    codes = draw(7, codebooks, 2048)
    rows = rows_of(codes)
    assert codes_of(rows).tolist() == codes.tolist()
    assert codes_of(rows[2:5]).tolist() == codes[2:5].tolist()


def test_the_all_zero_frame_alone_is_an_end():
    codes = np.array([[0, 7, 0], [0, 0, 0], [5, 0, 0], [0, 0, 1]])
    assert [row is None for row in rows_of(codes)] == [False, True, False, False]


def test_a_row_is_the_token_that_a_prompt_with_the_frame_is_hashed_by():
    codes = draw(16, 8, 2048)
    tokens, mask = np.zeros((16, 9), np.int64), np.ones((16, 9), bool)
    tokens[:, :8], mask[:, 8] = codes, False
    prompt, keys = Prompt(tokens, mask, 16, 0).prefix_keys(), Prompt(tokens[:3], mask[:3], 3, 0).prefix_keys()
    for row in rows_of(codes)[3:]:
        keys.append(row)
    assert keys.keys == prompt.keys and len(keys.keys) == 1


@pytest.mark.parametrize(("codebooks", "bins"), [(1, 2), (8, 1024), (32, 2048), (80, 1 << 14)])
def test_a_chunk_is_the_message_that_protobuf_builds(codebooks, bins):
    messages = ChunkMessages(codebooks, bins)
    for count, first in itertools.product((1, 3, 64), (0, 1, 127, 128, 1124)):
        codes = draw(count, codebooks, bins)
        expected = backbone_pb2.GenerateResponse()
        expected.chunk.first_frame_index = first
        for frame in codes.tolist():
            expected.chunk.frames.add(codes=frame)
        assert backbone_pb2.GenerateResponse.FromString(messages(first, rows_of(codes))) == expected


def test_codes_that_do_not_fit_two_bytes_are_refused():
    with pytest.raises(ValueError, match="20000 values"):
        ChunkMessages(32, 20_000)


def test_frames_of_another_size_are_no_message():
    with pytest.raises(ValueError, match="shape"):
        ChunkMessages(32, 2048)(0, rows_of(draw(3, 8, 1024)))
