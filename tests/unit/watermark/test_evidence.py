import itertools
import math
import random

import numpy as np
import pytest

from services.watermark.evidence import (
    MAX_P_VALUE,
    UNREACHABLE,
    contradiction,
    fit,
    tally,
    vote,
    votes_against,
    z_scores,
)
from services.watermark.key import PUBLIC_KEY, check_key, key_symbols, symbols_key

MESSAGE = key_symbols(PUBLIC_KEY)


def sums(symbols, period=21):
    """As of a decoder that is sure of each symbol."""
    return tally(np.eye(5)[np.asarray(symbols, int)].T, period)


def read(symbols, message=MESSAGE):
    return fit(sums(symbols, len(message)), message)


@pytest.mark.parametrize("rotation", [0, 1, 20])
def test_a_perfect_reading_is_found_at_its_rotation(rotation):
    symbols = np.roll(np.tile(MESSAGE, 3), rotation)
    result = read(symbols)
    assert result.significant and result.share == 1 and result.rotation == rotation
    assert symbols_key(vote(sums(symbols))) == PUBLIC_KEY


def test_chance_is_the_share_of_keys_that_would_agree_as_well():
    # Every message of five symbols drawn from the key's own mix, and its end, counted one by one.
    message = [1, 2, 1, 3, 4, 0]
    counts = sums(np.random.default_rng(0).integers(0, 5, 31), 6)
    result = fit(counts, message)
    turned = np.roll(counts, -result.rotation, axis=0)
    agreed = turned[np.arange(6), message].sum()
    assert result.share == agreed / 31
    others = [turned[np.arange(6), [*symbols, 0]].sum() for symbols in itertools.product(message[:-1], repeat=5)]
    assert result.p_value == pytest.approx(min(1, 6 * np.mean(np.array(others) >= agreed)))


@pytest.mark.parametrize("kind", ["one message", "five messages", "constant", "slow", "periodic", "noise"])
def test_found_is_the_same_as_above_the_threshold(kind):
    rng = np.random.default_rng(1)
    symbols = {
        "one message": MESSAGE,
        "five messages": np.where(rng.random(105) < 0.4, rng.integers(0, 5, 105), np.tile(MESSAGE, 5)),
        "constant": np.full(210, 2),
        "slow": np.repeat(rng.integers(0, 5, 30), 7),
        "periodic": np.tile(rng.integers(0, 5, 21), 10),
        "noise": rng.integers(0, 5, 210),
    }[kind]
    result = read(symbols)
    assert result.significant == (result.share >= result.threshold) == kind.endswith(("message", "messages"))


@pytest.mark.parametrize("kind", ["constant", "slow", "periodic", "noise"])
def test_symbols_that_say_no_key_prove_none(kind):
    rng = np.random.default_rng(1)
    symbols = {
        "constant": np.full(210, 2),
        "slow": np.repeat(rng.integers(0, 5, 30), 7),
        "periodic": np.tile(rng.integers(0, 5, 21), 10),
        "noise": rng.integers(0, 5, 210),
    }[kind]
    draw = random.Random(2)
    counts = sums(symbols)
    chances = [fit(counts, key_symbols(draw.randbytes(5))).p_value for _ in range(300)]
    # As rare as it says: of 300 keys about 3 at most lie below 1 %.
    assert sum(chance < 0.01 for chance in chances) <= 9
    assert min(chances) > MAX_P_VALUE


def test_three_misread_symbols_of_a_single_message_are_forgiven_and_no_more():
    assert math.ceil(21 * read(MESSAGE).threshold) == 18
    # 17 of 20 symbols of the key by chance: about 3e-8 for each of 21 rotations.
    binomial = sum(math.comb(20, k) * 0.25**k * 0.75 ** (20 - k) for k in range(17, 21))
    assert 21 * binomial < MAX_P_VALUE


def test_a_reading_with_errors_needs_more_messages():
    draw = np.random.default_rng(3)

    def noisy(periods):
        symbols = np.tile(MESSAGE, periods)
        return np.where(draw.random(len(symbols)) < 0.5, draw.integers(0, 5, len(symbols)), symbols)

    assert not any(read(noisy(1)).significant for _ in range(30))
    assert all(read(noisy(20)).significant for _ in range(30))


def test_nothing_read_is_nothing_proven():
    result = read(np.zeros(0, int))
    assert not result.significant and result.share == 0 and result.threshold == UNREACHABLE
    assert read(MESSAGE[:10]).threshold == UNREACHABLE  # half a message


def test_regular_keys_cannot_be_proven_and_are_not_taken():
    for key in (bytes(5), bytes([0x55, 0xAA, 0x55, 0xAA, 0x55])):
        message = key_symbols(key)
        assert not read(message, message).significant
        with pytest.raises(ValueError, match="too regular"):
            check_key(key, 5)


@pytest.mark.parametrize("symbols", [[1] * 21, [0, 0, *[1] * 19], [*MESSAGE[:-1], 1]])
def test_only_one_terminator_makes_a_key(symbols):
    assert symbols_key(symbols) is None


def test_a_decoder_that_wavers_still_proves_the_key():
    # In each column the key's symbol comes second: the likeliest alone says another key each time.
    draw = np.random.default_rng(4)
    truth = np.tile(MESSAGE, 4)
    rival = (truth + draw.integers(1, 5, len(truth))) % 5
    probabilities = np.full((5, len(truth)), 0.05)
    probabilities[truth, np.arange(len(truth))] = 0.4
    probabilities[rival, np.arange(len(truth))] = 0.45
    assert fit(tally(probabilities, 21), MESSAGE).significant
    assert symbols_key(vote(tally(probabilities, 21))) == PUBLIC_KEY
    assert not read(probabilities.argmax(0)).significant


def test_every_look_is_a_chance_to_be_wrong():
    counts = sums([*MESSAGE[:17], *[1] * 4] * 2)
    once, often = fit(counts, MESSAGE), fit(counts, MESSAGE, trials=12)
    assert often.p_value == pytest.approx(12 * once.p_value, rel=1e-6) and often.threshold >= once.threshold
    assert often.share == once.share


def test_a_long_clip_is_counted_in_larger_units_to_the_same_verdict():
    draw = np.random.default_rng(5)
    symbols = np.where(draw.random(42000) < 0.8, draw.integers(0, 5, 42000), np.tile(MESSAGE, 2000))
    result = read(symbols)
    assert result.significant and result.share == pytest.approx(np.mean(symbols == np.tile(MESSAGE, 2000)), abs=0.005)


# Whether the votes are for this key, or for a similar one.


def near_keys(draw):
    """Keys that differ from PUBLIC_KEY in a symbol, in a byte, or are it turned by a byte."""
    for place in range(20):
        symbols = MESSAGE[:]
        symbols[place] = symbols[place] % 4 + 1
        yield symbols
    for index in range(5):
        key = bytearray(PUBLIC_KEY)
        key[index] ^= draw.randrange(1, 256)
        yield key_symbols(bytes(key))
        yield (
            key_symbols(PUBLIC_KEY[index:] + PUBLIC_KEY[:index]) if index else key_symbols(bytes(reversed(PUBLIC_KEY)))
        )


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_similar_key_is_significant_and_contradicted(noise):
    draw, rng = random.Random(6), np.random.default_rng(6)
    truth = np.tile(MESSAGE, 8)
    symbols = np.where(rng.random(len(truth)) < noise, rng.integers(0, 5, len(truth)), truth)
    votes = sums(symbols)
    own = fit(votes, MESSAGE)
    assert own.significant and contradiction(votes, MESSAGE, own.rotation) <= 1
    significant = believed = 0
    for message in near_keys(draw):
        result = fit(votes, message)
        significant += result.significant
        believed += result.significant and contradiction(votes, message, result.rotation) <= 1
    assert believed <= (2 if noise else 0)  # a symbol's difference may hide in noise
    assert significant >= 20  # the p-value alone would take them for the clip's key


def test_symbols_that_are_misread_now_and_then_do_not_contradict():
    """In one of twenty clips that prove the key with a quarter of their symbols misread, at most."""
    rng = np.random.default_rng(7)
    found = refused = 0
    for _ in range(200):
        truth = np.tile(MESSAGE, int(rng.integers(2, 12)))
        symbols = np.where(rng.random(len(truth)) < 0.3, rng.integers(0, 5, len(truth)), truth)
        votes = sums(symbols)
        if fit(votes, MESSAGE).significant:
            found += 1
            refused += contradiction(votes, MESSAGE, 0) > 1
    assert found > 100 and refused <= found / 20


def test_z_scores_rank_windows_as_p_values_do():
    rng = np.random.default_rng(8)
    truth = np.tile(MESSAGE, 3)
    windows = [sums(np.where(rng.random(63) < noise, rng.integers(0, 5, 63), truth)) for noise in (0.9, 0.6, 0.3)]
    scores = z_scores(np.stack(windows), MESSAGE).max(axis=1)
    chances = [fit(window, MESSAGE).p_value for window in windows]
    assert list(np.argsort(-scores)) == list(np.argsort(chances)) == [2, 1, 0]


@pytest.mark.parametrize("rotation", [0, 7])
def test_no_votes_to_come_are_more_against_the_key_than_is_foretold(rotation):
    """Whatever two more messages and the begin of a third read."""
    rng = np.random.default_rng(rotation)
    truth = np.roll(np.tile(MESSAGE, 4), rotation)
    sure = np.where(np.arange(5)[:, None] == truth, 0.5, 0.125)
    read = tally(sure + rng.uniform(-0.1, 0.1, sure.shape), 21)
    more = tally(np.ones((5, 47)), 21)[:, 0]
    most = votes_against(read, MESSAGE, rotation, more)
    assert votes_against(read, MESSAGE, rotation) == 0 < most
    place = np.arange(47) % 21
    worst = np.eye(5)[(np.roll(MESSAGE, rotation)[place] + 1) % 5].T
    outcomes = [rng.dirichlet(np.full(5, 0.2), 47).T for _ in range(200)]
    against = [votes_against(read + tally(each, 21), MESSAGE, rotation) for each in (worst, *outcomes)]
    assert max(against) == against[0] <= most
    # All that is missing for the other symbol that is ahead at each place: that is the most.
    ahead = read.copy()
    ahead[np.arange(21), np.roll(MESSAGE, rotation)] = -1
    surely = np.eye(5)[ahead.argmax(axis=1)[place]].T
    assert votes_against(read + tally(surely, 21), MESSAGE, rotation) == pytest.approx(most)
