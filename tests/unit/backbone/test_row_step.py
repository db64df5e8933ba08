"""A step in memory of its own against the plain transformer: shapes, types, both forms of the products, padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.bundle import GeneratorPart, LlamaShape
from services.backbone import row_step
from services.backbone.depth_decoder import DepthDecoder
from services.backbone.model import build_model, init_random, rope_table
from services.backbone.row_step import RowStep, step_attention
from services.backbone.transformer import Transformer, attention

BATCH, STEPS = 4, 6
ALIKE = LlamaShape(layers=2, heads=3, kv_heads=3, dim=48, intermediate_dim=80, max_seq_len=40)
GROUPED = LlamaShape(layers=3, heads=8, kv_heads=2, dim=64, intermediate_dim=160, max_seq_len=40)


@pytest.fixture(scope="module", params=[ALIKE, GROUPED], ids=["a key a head", "grouped"])
def model(request):
    part = GeneratorPart(
        text_vocab_size=40,
        audio_vocab_size=67,
        codebooks=8,
        backbone=request.param,
        decoder=request.param,
        sources=(),
        folder=Path(),
    )
    model = init_random(build_model(part), seed=3)
    random = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(".scale"):
            parameter.data.uniform_(0.5, 2.0, generator=random)
    return model


def hidden_of(transformer: Transformer, step: RowStep, rows: torch.Tensor) -> torch.Tensor:
    """Positions 0 … STEPS - 1 of every row, one after another. rows, result: [STEPS, BATCH, D]."""
    shape = transformer.shape
    cache = torch.zeros(
        shape.layers, BATCH, 2, shape.kv_heads, STEPS, shape.dim // shape.heads, dtype=transformer.norm.dtype
    )
    out = []
    for position, row in enumerate(rows):

        def attend(layer, q, kv, position=position):
            cache[layer, :, :, :, position] = kv
            return step_attention(q, *cache[layer, :, :, :, : position + 1].unbind(1))

        step.inputs.copy_(row)
        rotation = transformer.rope[position].expand(BATCH, 1, -1)
        out.append(step.run(rotation, attend).clone())
    return torch.stack(out)


def plain_hidden(transformer: Transformer, rows: torch.Tensor) -> torch.Tensor:
    """The same by Transformer.forward, all positions of a row at once."""
    causal = torch.ones(STEPS, STEPS, dtype=torch.bool).tril()

    def attend(layer, q, k, v):
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        return attention(q, k, v, causal)[0].transpose(0, 1)

    return torch.stack(
        [transformer.forward(rows[:, row], torch.arange(STEPS), attend) for row in range(BATCH)], dim=1
    )  # fmt: skip


@pytest.mark.parametrize("copies", [False, True], ids=["shared weights", "copied weights"])
@pytest.mark.parametrize("by_columns", [False, True], ids=["by rows", "by columns"])
@torch.inference_mode()
def test_steps_equal_the_plain_transformer(model, monkeypatch, by_columns, copies):
    monkeypatch.setattr(row_step, "_CACHED_BYTES", 0 if by_columns else 1 << 40)
    transformer = Transformer(model.backbone, model.part.backbone, rope_table(model.part.backbone, "cpu"))
    rows = torch.randn(STEPS, BATCH, model.part.backbone.dim, generator=torch.Generator().manual_seed(2))
    rows[:, 1] *= 1e-3  # where the norm's epsilon counts
    ours = hidden_of(transformer, RowStep(transformer, BATCH, copies=copies), rows)
    torch.testing.assert_close(ours, plain_hidden(transformer, rows), atol=2e-5, rtol=0)


@torch.inference_mode()
def test_bf16_steps_round_as_the_plain_transformer_does(model):
    """So that a request which is resumed, its frames prefilled, goes on with the same codes."""
    part = model.part
    rows = torch.randn(STEPS, BATCH, part.backbone.dim, generator=torch.Generator().manual_seed(2))
    wanted = plain_hidden(Transformer(model.backbone, part.backbone, rope_table(part.backbone, "cpu")), rows)
    rounded = init_random(build_model(part), seed=3)
    rounded.load_state_dict(model.state_dict())
    rounded = rounded.to(torch.bfloat16)
    transformer = Transformer(rounded.backbone, part.backbone, rope_table(part.backbone, "cpu"))
    plain = plain_hidden(transformer, rows.bfloat16()).float()
    error = (plain - wanted).abs().mean()
    for copies in (False, True):
        ours = hidden_of(transformer, RowStep(transformer, BATCH, copies=copies), rows.bfloat16()).float()
        assert (ours - plain).abs().mean() < 0.2 * error


@pytest.mark.parametrize("by_columns", [False, True], ids=["by rows", "by columns"])
@torch.inference_mode()
def test_a_row_has_the_same_bits_whatever_the_others_hold(model, monkeypatch, by_columns):
    monkeypatch.setattr(row_step, "_CACHED_BYTES", 0 if by_columns else 1 << 40)
    transformer = Transformer(model.backbone, model.part.backbone, rope_table(model.part.backbone, "cpu"))
    step = RowStep(transformer, BATCH, copies=True)
    random = torch.Generator().manual_seed(5)
    row = torch.randn(STEPS, model.part.backbone.dim, generator=random)
    seen = set()
    for place in range(BATCH):
        rows = 100 * torch.randn(STEPS, BATCH, model.part.backbone.dim, generator=random)
        rows[:, place] = row
        seen.add(hidden_of(transformer, step, rows)[:, place].numpy().tobytes())
    assert len(seen) == 1


@torch.inference_mode()
def test_copied_weights_change_the_depth_decoders_logits_by_rounding_alone(model):
    random = torch.Generator().manual_seed(8)
    hidden = torch.randn(BATCH, model.part.backbone.dim, generator=random)
    codes = torch.randint(model.part.audio_vocab_size, (model.part.codebooks, BATCH), generator=random)
    logits = []
    for copies in (False, True):

        def forced(codebook, each):
            logits.append(each.clone())
            return codes[codebook]

        decoder = DepthDecoder(model, BATCH, copies=copies)
        assert torch.equal(decoder.decode(hidden, forced), codes.T)
    half = model.part.codebooks
    torch.testing.assert_close(torch.stack(logits[:half]), torch.stack(logits[half:]), atol=2e-5, rtol=0)
