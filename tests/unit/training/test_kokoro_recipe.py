"""The recipe's second teacher: what makes its batches equal to single utterances, and what is cut from its speech."""

import numpy as np
import pytest
import torch
from torch.nn.functional import instance_norm


@pytest.fixture
def recipe(recipe_modules):
    pytest.importorskip("scipy")
    return recipe_modules("kokoro", "cast", "kokoro_pack")


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("/encoder/F0.0/conv1/Conv_quant", "predictor.F0.0.conv1"),
        ("/encoder/text_encoder/cnn.2/cnn.2.0/Conv_quant", "text_encoder.cnn.2.0"),
        ("/encoder/predictor/text_encoder/lstms.0/LSTM_quant", "predictor.text_encoder.lstms.0"),
        ("/encoder/bert_encoder/MatMul_quant", "bert_encoder"),
        ("/decoder/decoder/asr_res/asr_res.0/Conv_quant", "decoder.asr_res.0"),
        (
            "/decoder/decoder/generator/resblocks.4/adain2.2/fc/Gemm_MatMul_quant",
            "decoder.generator.resblocks.4.adain2.2.fc",
        ),
        ("/decoder/decoder/generator/ups.1/ConvTranspose", "decoder.generator.ups.1"),
    ],
)
def test_a_node_tells_its_module(recipe, node, module):
    assert recipe[2].place(node) == module


def test_masked_moments_are_those_of_the_utterance_alone(recipe):
    kokoro, *_ = recipe
    torch.manual_seed(0)
    x, lengths = torch.randn(3, 5, 1, 40) * 3 + 1, [40, 17, 3]
    mask = (torch.arange(40) < torch.tensor(lengths)[:, None]).float()[:, None, None]
    mean, deviation = kokoro.moments(x, mask, mask.sum(-1, keepdim=True))
    made = kokoro.leaky(x, deviation, -mean * deviation, mask)
    for i, n in enumerate(lengths):
        alone = torch.nn.functional.leaky_relu(instance_norm(x[i : i + 1, :, 0, :n]), 0.2)
        assert torch.allclose(made[i, :, 0, :n], alone[0], atol=1e-4)
        assert not made[i, :, 0, n:].any()


def spoken(kokoro, units: list[int]):
    counts = torch.tensor(units)
    return kokoro.Spoken(torch.arange(1, len(units) + 1), counts, torch.empty(0), torch.empty(0), torch.empty(0))


def test_edges_are_cut_loudness_is_one_and_labels_stay_with_their_sounds(recipe):
    kokoro, cast, _ = recipe
    quiet, loud = spoken(kokoro, [40, 40, 40]), spoken(kokoro, [20, 60, 20])
    audio = torch.zeros(2, 130 * 600)
    t = torch.arange(130 * 600)
    for row, one, level in ((0, quiet, 0.1), (1, loud, 0.4)):
        start, end = int(one.units[0]) * 600, int(one.units[:2].sum()) * 600  # phoneme 2 sounds, the others are silent
        audio[row, start:end] = level * torch.sin(t[start:end] * 0.1)
    audio[1, 110 * 600 :] = 1  # behind the end of the second: nothing
    for made, sounding_s in zip(cast.finish(audio, [quiet, loud]), (1.0, 1.5), strict=True):
        clip, phones = made
        assert clip.dtype == np.int16 and len(clip) % 1920 == 0 and len(clip) == 960 * len(phones)
        length_s = cast.LEAD_S + sounding_s + cast.TAIL_S
        assert abs(len(clip) / 24000 - length_s) < 0.1
        rms = np.sqrt(np.mean((clip / 32767.0) ** 2) * len(clip) / (length_s * 24000))
        assert abs(rms - cast.RMS) < 0.003
        assert phones[0] == 1 and phones[-1] == 3
        assert abs((phones == 2).sum() * 0.04 - sounding_s) < 0.09
        sounds = np.abs(clip.reshape(-1, 960)).max(1) > 300
        assert (sounds == (phones == 2)).mean() > 0.9


def test_silence_is_left_out(recipe):
    kokoro, cast, _ = recipe
    assert cast.finish(torch.zeros(1, 30 * 600), [spoken(kokoro, [10, 10, 10])]) == [None]
