"""The embedded bundle's voice, stage by stage in one process: the codes of a seed, an end of its own, a mark that is found.

The rest of what it must reach is measured by `make voice-test`, which needs a recogniser.
"""

import numpy as np
import pytest
import torch

import services.backbone.eager_runner as runner_module
from models.bundle import load_bundle
from models.mimi import load_mimi
from services.backbone.eager_runner import EagerRunner
from services.backbone.prompt import PromptLimits, Text
from services.backbone.request import Sampling
from services.backbone.sampling import sample
from services.backbone.weights import load_model
from services.codec.decoder import SlotDecoder
from services.tokenizer.text import load_text_tokenizer
from services.watermark.detector import Detector
from services.watermark.embedder import Embedder
from services.watermark.weights import load_nets
from support.backbone_slots import open_slot

TEXT, SPEAKER, SEED = "Yes, that would be great.", 0, 52
# The first frames of this text, speaker and seed at the default temperature and top-k, in fp32. A code is where
# logits / temperature + noise is greatest. Processors differ by about 1e-4 there, so codes can only differ where the
# runner-up is as close as that: of some dozens of seeds this is the one whose draws are clearest, and the test holds
# every one of them to CLEAR before it compares. New weights need new codes: run this file (PYTHONPATH=tests).
CLEAR = 0.05
GOLDEN = [
    [283, 646, 757, 414, 203, 574, 925, 72, 810, 884],
    [438, 310, 757, 518, 382, 336, 1002, 704, 624, 351],
    [551, 568, 374, 596, 30, 349, 542, 942, 239, 250],
    [74, 983, 521, 114, 1016, 195, 400, 248, 497, 325],
    [570, 614, 552, 353, 141, 655, 716, 533, 168, 897],
    [449, 994, 139, 181, 896, 89, 155, 90, 24, 347],
    [557, 454, 147, 278, 637, 890, 457, 40, 744, 362],
    [658, 246, 764, 968, 555, 515, 907, 867, 623, 276],
    [928, 152, 166, 109, 346, 846, 158, 431, 8, 372],
    [843, 461, 657, 42, 347, 719, 600, 246, 14, 1003],
]


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("embedded")


def read(bundle):
    part = bundle.generator
    ids = load_text_tokenizer(bundle, 100).encode(SPEAKER, TEXT).ids
    limits = PromptLimits(part.codebooks, part.text_vocab_size, part.audio_vocab_size - 3, part.backbone.max_seq_len)
    return limits.build([Text(ids)], ())[0]


@pytest.fixture(scope="module")
def prompt(bundle):
    return read(bundle)


def margin(logits, temperature, top_k, max_top_k, noise) -> float:
    """How far the winner of a draw is ahead of all others, those a hair below the top-k threshold included."""
    known = logits[:, : noise.shape[1]]
    threshold = known.topk(min(max_top_k, known.shape[1])).values[:, -1:]
    scores = (known / temperature + noise).masked_fill(known < threshold - CLEAR, float("-inf"))
    first, second = scores.topk(2).values[0]
    return float(first - second)


def frames(model, prompt, seed: int, most: int, margins: list[float]) -> list[list[int]]:
    """Up to `most` frames, the end frame left out; the margin of every draw is added to `margins`."""

    def drawn(logits, *rest):
        margins.append(margin(logits[:1], *(x[:1] if torch.is_tensor(x) else x for x in rest)))
        return sample(logits, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "sample", drawn)
        runner = EagerRunner(model, slots=1)
        open_slot(runner, 0, prompt, Sampling(temperature=0.9, top_k=50, seed=seed))
        made = []
        while len(made) < most and any(frame := runner.step([0])[0]):
            made.append(frame)
        return made


@pytest.fixture(scope="module")
def model(bundle):
    return load_model(bundle.generator)


def test_a_seed_gives_the_golden_codes(model, prompt):
    margins = []
    made = frames(model, prompt, SEED, len(GOLDEN), margins)
    assert min(margins) > CLEAR, "a draw of these frames is too close to be compared: choose another seed"
    assert made == GOLDEN


def test_it_ends_by_itself_and_its_mark_is_found(bundle, model, prompt):
    codes = frames(model, prompt, SEED, 100, [])
    assert 12 <= len(codes) <= 40  # the teacher takes 21 frames

    decoder = SlotDecoder(load_mimi(bundle), slots=1)
    decoder.reset(0)
    chunks = [np.array(codes[at : at + 8]) for at in range(0, len(codes), 8)]
    audio = np.concatenate([decoder.decode([(0, chunk)])[0] for chunk in chunks])
    assert audio.shape == (1920 * len(codes),)
    assert 0.01 < np.sqrt(np.mean(audio**2)) < 0.3

    part = bundle.watermark
    nets, key = load_nets(part.resolve()), bytes(part.options["public_key"])
    marked = Embedder(nets, key).embed(audio)
    detector = Detector(nets)
    found = detector.detect(marked, bundle.sample_rate_hz, key)
    assert found.found and found.confidence > found.threshold
    assert not detector.detect(audio[:24000], bundle.sample_rate_hz, key).found

    # Keys that share four of five bytes, or are the true one turned by a byte, are not the key.
    for similar in (bytes([key[0] ^ 0x5A, *key[1:]]), bytes([*key[:4], key[4] ^ 0x96]), key[1:] + key[:1]):
        other = detector.detect(marked, bundle.sample_rate_hz, similar)
        assert not other.found and other.confidence < other.threshold

    # A marked sentence between louder noise is found in its place, and in the channel that has it.
    rng = np.random.default_rng(0)
    loud = 3 * float(np.sqrt(np.mean(marked**2)))
    before, after = (loud * rng.standard_normal(round(s * 24000)).astype(np.float32) for s in (3.0, 2.0))
    left = np.concatenate([before, marked, after])
    [mark] = detector.detect(np.stack([rng.permutation(left), left], axis=1), bundle.sample_rate_hz, key).marks
    message_s = nets.hparams.message_seconds
    assert mark.channel == 1 and mark.start_s == pytest.approx(3.0, abs=1.5 * message_s)
    assert mark.end_s == pytest.approx(3.0 + len(marked) / 24000, abs=1.5 * message_s)


if __name__ == "__main__":
    bundle_, found_ = load_bundle("embedded"), {}
    model_, prompt_ = load_model(bundle_.generator), read(bundle_)
    for seed_ in range(60):
        clear: list[float] = []
        found_[seed_] = frames(model_, prompt_, seed_, 10, clear), min(clear)
    best_ = max(found_, key=lambda seed: found_[seed][1])
    print(f"SEED = {best_}, clear by {found_[best_][1]:.3f}\nGOLDEN = {found_[best_][0]}")
