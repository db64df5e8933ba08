"""What the training of the mark's pair asks for: the stock decoder's vote, the attacks' shares, the mean of the weights."""

import sys

import numpy as np
import pytest
import torch
import yaml

from models.bundle import load_bundle

RATE_HZ = 24000


@pytest.fixture
def recipe(recipe_modules):
    (module,) = recipe_modules("watermark_train")
    return module


def crops(recipe, wrong: list[tuple[int, int]], places: int = 189):
    """Logits [1, 5, T] of nine messages, sure of the symbol but in these (message, place) pairs; the vote; symbols [1, 21]."""
    place = torch.arange(places)[None] % recipe.PERIOD
    symbols = torch.arange(recipe.PERIOD)[None] % 4 + 1
    read = symbols.gather(1, place)
    for message, at in wrong:
        read[0, message * recipe.PERIOD + at] = 0
    logits = 8 * torch.nn.functional.one_hot(read, 5).float().transpose(1, 2)
    return logits, recipe.Vote(place), symbols


def test_what_loses_one_place_costs_more_than_the_same_errors_spread(recipe):
    """The package loses the key by one place, so the loss must rank the crops as its vote does."""
    one_place = crops(recipe, [(message, 7) for message in range(6)])
    spread = crops(recipe, [(message, 3 * message) for message in range(6)])
    assert not recipe.key_read(*one_place) and recipe.key_read(*spread)
    assert recipe.vote_loss(*one_place) > recipe.vote_loss(*spread) + 1
    assert recipe.vote_loss(*spread) > recipe.vote_loss(*crops(recipe, []))


def test_columns_that_say_nothing_cost_less_than_columns_that_are_wrong(recipe):
    logits, vote, symbols = crops(recipe, [(message, 7) for message in range(6)])
    unsure = logits.clone()
    unsure[0, :, 7 : 6 * recipe.PERIOD : recipe.PERIOD] = 0
    assert recipe.vote_loss(unsure, vote, symbols) < recipe.vote_loss(logits, vote, symbols) - 1


def test_four_of_five_crops_begin_at_a_column(recipe):
    torch.manual_seed(0)
    starts = recipe.crop_starts(4000, 6464, "cpu")
    beside = (starts + recipe.HOP // 2) % recipe.HOP - recipe.HOP // 2
    near = (beside.abs() <= 8).float().mean().item()
    chance = 17 / recipe.HOP
    assert near == pytest.approx(0.8 + 0.2 * chance, abs=0.03)
    assert 0 <= starts.min() and starts.max() <= 6464 + recipe.HOP // 2 + 8
    assert starts.max() > 6000


def drawn(clips: int, **draws: float) -> torch.Tensor:
    """Draws that choose no attack but those given: the columns of `attack` by name."""
    columns = {"low_pass": 0, "edge": 1, "white": 2, "depth": 3, "noise": 4, "level": 8}
    draw = torch.full((clips, 12), 0.99)
    for name, value in draws.items():
        draw[:, columns[name]] = value
    return draw


def test_the_share_of_noisy_crops_is_as_asked(recipe):
    audio = torch.from_numpy(np.random.default_rng(0).standard_normal((1, recipe.CROP)).astype(np.float32)) * 0.05
    white = {"noise": 0.6, "white": 0.0, "depth": 0.0, "level": 0.5}
    left = recipe.attack(audio, drawn(1, **white), noisy=0.45)
    torch.testing.assert_close(left, audio, atol=1e-5, rtol=0)
    noise = recipe.attack(audio, drawn(1, **white), noisy=0.65) - audio
    assert 10 * torch.log10(audio.square().mean() / noise.square().mean()) == pytest.approx(20, abs=0.1)


def test_one_crop_in_eight_loses_what_is_above_some_frequency(recipe):
    audio = torch.from_numpy(np.random.default_rng(0).standard_normal((1, recipe.CROP)).astype(np.float32)) * 0.05

    def above_6_khz(share: float) -> float:
        out = recipe.attack(audio, drawn(1, low_pass=share, edge=0.0), noisy=0)
        return (
            torch.fft.rfft(out).abs()[:, recipe.CROP // 4 :].square().sum()
            / torch.fft.rfft(audio).abs()[:, recipe.CROP // 4 :].square().sum()
        ).item()

    assert above_6_khz(0.11) < 1e-3 and above_6_khz(0.13) == pytest.approx(1, abs=1e-3)


def test_the_mean_follows_the_weights_and_is_lent_to_an_export(recipe):
    weight = torch.nn.Parameter(torch.zeros(3))
    mean = recipe.RunningMean([weight], rate=0.5)
    for value in (1.0, 3.0):
        weight.data.fill_(value)
        mean.update()
    with pytest.raises(KeyboardInterrupt), mean.swapped_in():
        assert weight.tolist() == [1.75] * 3  # (0 + 1) / 2 = 0.5; (0.5 + 3) / 2
        raise KeyboardInterrupt
    assert weight.tolist() == [3.0] * 3


@pytest.mark.slow
def test_a_sitting_goes_on_from_a_pair_and_exports_what_the_service_loads(recipe, tmp_path, monkeypatch):
    from services.watermark.weights import load_nets

    audio = (np.random.default_rng(0).standard_normal(RATE_HZ * 4) * 1500).astype(np.int16)
    speech = tmp_path / "speech"
    speech.mkdir()
    np.savez(speech / "shard-00000.npz", audio=audio, phones=np.zeros(len(audio) // 960, np.uint8))
    start = load_bundle("embedded").watermark.resolve()
    options = ["--seconds", "0.01", "--batch", "2", "--hours", "0.01", "--least-hours", "0.001", "--device", "cpu"]
    options += ["--no-bf16", "--plain", "28.8", "--message-sdr", "28.8", "--noisy", "0.65", "--peak", "1"]
    arguments = ["--speech", str(speech), "--out", str(tmp_path / "out"), "--start", str(start["enc_c"].parent)]
    monkeypatch.setattr(sys, "argv", ["watermark_train.py", *arguments, *options])
    recipe.main()
    export = {role: tmp_path / "out/export" / path.name for role, path in start.items()}
    before, after = (yaml.safe_load(files["hparams"].read_text()) for files in (start, export))
    assert after == before | {"message_sdr": 28.8}
    trained = torch.load(tmp_path / "out/watermark.pt")["pair"]["dec_m.linear.weight"]
    began, mean = (load_nets(files).dec_m.linear.weight for files in (start, export))
    # One step moves a weight by a hundredth of the peak rate, and the mean by a 250th of that.
    assert (trained - began).abs().max() == pytest.approx(0.01, rel=0.1)
    torch.testing.assert_close(mean, began + recipe.MEAN_RATE * (trained - began), atol=1e-6, rtol=2**-11)
