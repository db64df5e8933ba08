import itertools
import math
import random
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest

from services.watermark.evidence import SIGMAS, fit, tally, vote
from services.watermark.key import PUBLIC_KEY, check_key, key_symbols, symbols_key

MESSAGE = key_symbols(PUBLIC_KEY)


def read(symbols, message=MESSAGE):
    return fit(tally(np.asarray(symbols), len(message), 5), message)


@pytest.mark.parametrize("rotation", [0, 1, 20])
def test_a_perfect_reading_is_found_at_its_rotation(rotation):
    symbols = np.roll(np.tile(MESSAGE, 3), rotation)
    result = read(symbols)
    assert result.share == 1 and result.rotation == rotation and result.share > result.threshold
    assert symbols_key(vote(tally(symbols, 21, 5))) == PUBLIC_KEY


def test_mean_and_deviation_are_those_of_all_arrangements():
    rng = np.random.default_rng(0)
    message = [1, 2, 1, 3, 0, 4]
    counts = tally(rng.integers(0, 5, 40), 6, 5)
    shares = [counts[np.arange(6), list(order)].sum() / 40 for order in itertools.permutations(message)]
    result = fit(counts, message)
    assert result.expected == pytest.approx(np.mean(shares))
    assert result.deviation == pytest.approx(np.std(shares))


def chances(message):
    """Exact share of the message's arrangements that agree with it in k places, for each k (rook numbers)."""
    rooks, length = [1], len(message)
    for n in Counter(message).values():
        block = [math.comb(n, k) ** 2 * math.factorial(k) for k in range(n + 1)]
        product = [0] * (len(rooks) + n)
        for (i, a), (j, b) in itertools.product(enumerate(rooks), enumerate(block)):
            product[i + j] += a * b
        rooks = product
    arrangements = [
        sum((-1) ** (j - k) * math.comb(j, k) * rooks[j] * math.factorial(length - j) for j in range(k, length + 1))
        for k in range(length + 1)
    ]
    assert sum(arrangements) == math.factorial(length)
    return [count / math.factorial(length) for count in arrangements]


def test_false_alarms_are_rarer_than_one_in_a_million():
    draw = random.Random(0)
    mixes = {}
    for _ in range(1000):
        key = draw.randbytes(5)
        with suppress(ValueError):
            message = key_symbols(check_key(key, 5))
            mixes[tuple(sorted(Counter(message[:-1]).values()))] = message
    assert len(mixes) > 30
    for message in [MESSAGE, *mixes.values()]:
        needed = math.ceil(21 * read(message, message).threshold)
        assert needed <= 20  # one wrong symbol is forgiven
        assert 21 * sum(chances(message)[needed:]) < 1e-6


@pytest.mark.parametrize("kind", ["constant", "slow", "periodic", "noise"])
def test_structured_symbols_prove_nothing(kind):
    rng = np.random.default_rng(1)
    symbols = {
        "constant": np.full(210, 2),
        "slow": np.repeat(rng.integers(0, 5, 30), 7),
        "periodic": np.tile(rng.integers(0, 5, 21), 10),
        "noise": rng.integers(0, 5, 210),
    }[kind]
    draw = random.Random(2)
    counts = tally(symbols, 21, 5)
    results = [fit(counts, key_symbols(draw.randbytes(5))) for _ in range(3000)]
    assert not any(result.share >= result.threshold for result in results)
    assert max(result.sigmas for result in results) < SIGMAS


def test_a_reading_with_errors_needs_more_messages():
    draw = np.random.default_rng(3)

    def noisy(periods, right):
        symbols = np.tile(MESSAGE, periods)
        wrong = draw.random(len(symbols)) > right
        return np.where(wrong, draw.integers(0, 5, len(symbols)), symbols)

    assert sum(read(noisy(1, 0.4)).sigmas > SIGMAS for _ in range(100)) < 5
    assert sum(read(noisy(20, 0.5)).sigmas > SIGMAS for _ in range(100)) > 95


def test_nothing_read_is_nothing_proven():
    result = read(np.zeros(0, int))
    assert result.share == 0 and result.threshold > 1


@pytest.mark.parametrize("symbols", [[1] * 21, [0, 0, *[1] * 19], [*MESSAGE[:-1], 1]])
def test_only_one_terminator_makes_a_key(symbols):
    assert symbols_key(symbols) is None
