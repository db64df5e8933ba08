"""The generator against transformers' CsmForConditionalGeneration and torchtune's own forward, fp32."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from services.backbone.depth_decoder import DepthDecoder
from services.backbone.eager_runner import EagerRunner
from services.backbone.keymap import from_transformers
from services.backbone.model import build_model, rope_table
from services.backbone.prompt import Audio, PromptLimits, Text
from services.backbone.request import Sampling
from services.backbone.transformer import Transformer, attention
from support.backbone_slots import open_slot
from support.tiny_csm import AUDIO_EOS_TOKEN, AUDIO_TOKEN, make_stock
from support.transformers_names import to_transformers

FRAMES = 20


@dataclass
class Case:
    """One conversation: what we are given, and the same as transformers takes it."""

    parts: list
    input_ids: torch.Tensor  # [1, T] with placeholders for audio
    audio: list[torch.Tensor]  # codes of each audio segment, [frames, K]


def conversation(part, *turns: tuple[int, int]) -> Case:
    """turns: (text tokens, audio frames) of each turn; the last has no audio."""
    random = np.random.default_rng(3)
    parts, ids, audio = [], [], []
    for texts, frames in turns:
        text = random.integers(2, 90, texts).tolist()
        parts.append(Text(text))
        ids += text
        if frames:
            codes = random.integers(0, part.audio_vocab_size - 3, (frames, part.codebooks))
            parts.append(Audio(codes.tolist()))
            ids += [AUDIO_TOKEN] * frames + [AUDIO_EOS_TOKEN]
            audio.append(torch.from_numpy(codes))
    return Case(parts, torch.tensor([ids]), audio)


CASES = {
    "text only": ((14, 0),),
    "a context turn": ((9, 23), (12, 0)),
    # longer than one prefill piece, and than the distance at which RoPE's scaling shows
    "two speakers": ((9, 31), (12, 57), (17, 0)),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request, part) -> Case:
    return conversation(part, *request.param)


def stock_inputs(stock, case: Case) -> dict:
    """Inputs of transformers' own merge of text and audio; only its codec is replaced, by the codes."""
    inputs = {"input_ids": case.input_ids, "attention_mask": torch.ones_like(case.input_ids)}
    if case.audio:
        remaining = iter(case.audio)
        longest = max(len(codes) for codes in case.audio)
        stock.codec_model.encode = lambda _: SimpleNamespace(audio_codes=next(remaining).T.unsqueeze(0))
        stock.codec_model.get_audio_codes_mask = lambda _: torch.stack(
            [torch.arange(longest) < len(codes) for codes in case.audio]
        )
        ends = torch.tensor([len(codes) for codes in case.audio]).cumsum(0)
        inputs |= {"input_values": torch.zeros(1, 1, int(ends[-1])), "input_values_cutoffs": ends.unsqueeze(0)}
    return inputs


def our_hidden(model, case: Case) -> torch.Tensor:
    """Backbone hidden states of every prompt token, [T, D], in one pass."""
    shape = model.part.backbone
    prompt, _ = limits(model).build(case.parts)
    embedded = model.embed_tokens(torch.from_numpy(prompt.tokens), torch.from_numpy(prompt.mask))
    causal = torch.ones(len(embedded), len(embedded), dtype=torch.bool).tril()

    def attend(layer, q, k, v):
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        return attention(q, k, v, causal)[0].transpose(0, 1)

    transformer = Transformer(model.backbone, shape, rope_table(shape, "cpu"))
    return transformer.forward(embedded, torch.arange(len(embedded)), attend)


def limits(model) -> PromptLimits:
    part = model.part
    return PromptLimits(part.codebooks, part.text_vocab_size, part.audio_vocab_size - 3, part.backbone.max_seq_len)


def our_frames(model, case: Case, sampling: Sampling, frames: int = FRAMES) -> list[list[int]]:
    runner = EagerRunner(model, slots=2, batch_size=2, max_prefill_tokens=32)
    prompt, _ = limits(model).build(case.parts)
    open_slot(runner, 1, prompt, sampling)
    return [runner.step([1])[0] for _ in range(frames)]


@torch.inference_mode()
def test_backbone_logits_equal_transformers(model, stock, case):
    theirs = stock(**stock_inputs(stock, case)).logits[0]
    ours = model.codebook0_head(our_hidden(model, case))
    assert theirs.std() > 0.3  # logits that are all alike would agree by themselves
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_depth_logits_equal_transformers_teacher_forced(model, stock):
    part, batch = model.part, 3
    random = torch.Generator().manual_seed(8)
    hidden = torch.randn(batch, part.backbone.dim, generator=random)
    frames = torch.randint(part.audio_vocab_size, (batch, part.codebooks), generator=random)
    placeholder = torch.zeros(batch, 1, dtype=torch.int64)
    theirs = stock.depth_decoder(
        input_ids=torch.cat([placeholder, frames[:, :-1]], dim=1), backbone_last_hidden_state=hidden
    ).logits  # [B, K - 1, V], codebooks 1 …
    seen = {}

    def forced(codebook, logits):
        seen[codebook] = logits
        return frames[:, codebook]

    decoder = DepthDecoder(model, batch)
    for _ in range(2):  # the second frame must not see the first one's cache
        assert torch.equal(decoder.decode(hidden, forced), frames)
    ours = torch.stack([seen[codebook] for codebook in range(1, part.codebooks)], dim=1)
    assert theirs.std() > 0.3
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_greedy_codes_equal_transformers(model, stock, case):
    never = list(range(model.part.audio_vocab_size - 3, model.part.audio_vocab_size))
    stock.depth_decoder.generation_config.suppress_tokens = never
    theirs = stock.generate(
        **stock_inputs(stock, case),
        max_new_tokens=FRAMES,
        do_sample=False,
        depth_decoder_do_sample=False,
        suppress_tokens=never,
    )[0]
    ours = our_frames(model, case, Sampling(top_k=1))
    assert theirs.shape == (FRAMES, model.part.codebooks)
    assert len(theirs.unique()) > 20
    assert ours == theirs.tolist()


@torch.inference_mode()
def test_forward_equals_torchtunes_own(model, case):
    """The same module run by torchtune's forward, as Sesame's code does."""
    prompt, _ = limits(model).build(case.parts)
    rows = model.embed_tokens(torch.from_numpy(prompt.tokens), torch.from_numpy(prompt.mask))
    ours = our_hidden(model, case)
    for layer in model.backbone.layers:
        layer.attn.pos_embeddings.rope_init()  # built on the meta device, it skipped its table
    theirs = model.backbone(rows.unsqueeze(0))[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_embeddings_are_a_masked_sum_as_sesame_writes_it(model, case):
    """Sesame's `_embed_tokens` then mask and sum, written out token by token."""
    part = model.part
    prompt, _ = limits(model).build(case.parts)
    ours = model.embed_tokens(torch.from_numpy(prompt.tokens), torch.from_numpy(prompt.mask))
    for at, (row, mask) in enumerate(zip(prompt.tokens, prompt.mask, strict=True)):
        wanted = torch.zeros(part.backbone.dim)
        for codebook in range(part.codebooks):
            if mask[codebook]:
                wanted += model.audio_embeddings.weight[row[codebook] + codebook * part.audio_vocab_size]
        if mask[-1]:
            wanted += model.text_embeddings.weight[row[-1]]
        torch.testing.assert_close(ours[at], wanted, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_weights_from_transformers_give_its_logits(part):
    """The other direction: transformers' own random weights through our key map."""
    stock = make_stock(part)
    ours = build_model(part)
    ours.to_empty(device="cpu")
    state = {}
    for name, tensor in stock.state_dict().items():
        renamed = from_transformers(name, tensor, part)
        assert (renamed is None) == name.startswith("codec_model.")
        if renamed is not None:
            state[renamed[0]] = renamed[1]
    ours.load_state_dict(state, strict=True)
    case = conversation(part, (9, 23), (12, 0))
    theirs = stock(**stock_inputs(stock, case)).logits[0]
    torch.testing.assert_close(ours.codebook0_head(our_hidden(ours, case)), theirs, atol=1e-4, rtol=1e-5)


def test_key_map_is_its_own_inverse(model):
    for name, tensor in model.state_dict().items():
        theirs = to_transformers(name, tensor, model.part)
        back = from_transformers(*theirs, model.part)
        assert back is not None and back[0] == name
        assert torch.equal(back[1], tensor)
