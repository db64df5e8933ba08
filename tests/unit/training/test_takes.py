"""Short answers in the recipe: their own mix of lines, several takes of each, the clearest kept."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def tables(tmp_path):
    (tmp_path / "words.txt").write_text("coffee london warm water the cat ran home")
    (tmp_path / "chains.json").write_text(json.dumps({"the": [["cat", "ran", "home"], [1, 1, 1]]}))
    (tmp_path / "books.txt").write_text("She was happy.")
    (tmp_path / "chats.txt").write_text("How are you?")
    return tmp_path


def test_the_brief_mix_is_short_and_has_lone_letters(recipe_modules, tables):
    (text,) = recipe_modules("text")
    lines = list(islice(iter(text.Writer(tables, 1, "brief")), 3000))
    words = [len(line.split()) for line in lines]
    assert np.mean([count <= 2 for count in words]) > 0.5
    lone = {line[0] for line in lines if len(line) == 2 and line[0].isupper()}
    assert lone == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_short_answers_of_the_acceptance_are_held_out_but_for_the_commonest(recipe_modules, tables):
    (text,) = recipe_modules("text")
    held_out = text.held_out_answers()
    assert {"warm water", "london", "f b i", "mister brown", "twenty five"} <= held_out
    assert not held_out & {"yes", "thank you", "b", "r"}
    writer = text.Writer(tables, 1, "brief")
    keys = {text.key_of(line) for line in islice(iter(writer), 20000)}
    assert not keys & held_out
    writer.held_out = set()
    assert {"warm water", "london"} <= {text.key_of(line) for line in islice(iter(writer), 20000)}  # it could have


def test_each_take_begins_later(recipe_modules):
    torch = pytest.importorskip("torch")
    cast, kokoro = recipe_modules("cast", "kokoro")
    units = torch.tensor([2, 5, 3])
    one = kokoro.Spoken(torch.tensor([0, 46, 0]), units, *[torch.zeros(1)] * 3, key=("B.", 0, []))
    takes = [cast.later(one, number) for number in range(3)]
    assert [take.units.tolist() for take in takes] == [[2, 5, 3], [3, 5, 3], [4, 5, 3]]
    assert [take.key for take in takes] == [(("B.", 0, []), number) for number in range(3)]
    assert units.tolist() == [2, 5, 3]


def test_the_clearest_take_of_each_text_is_kept(recipe_modules):
    (takes,) = recipe_modules("takes")
    numbers = np.array([0, 1, 2, 0, 1, 1, 2, 0])  # of the third text the first take came to nothing
    assert takes.clearest(numbers, [-3, -1, -2, -1, -4, -2, -1, -9]) == [1, 3, 6, 7]


def test_one_sound_that_is_lost_counts_more_than_all_a_little(recipe_modules):
    (takes,) = recipe_modules("takes")
    phones = np.array([0, 0, 50, 50, 156, 60, 61, 0], np.uint8)
    even = takes.clearness(np.array([-9, -9, -1, -1, -9, -1, -1, -9.0]), phones)
    lost = takes.clearness(np.array([0, 0, -0.1, -0.1, 0, -0.1, -2.8, 0.0]), phones)
    assert even == pytest.approx(-2) and lost == pytest.approx(-3.8)
    assert takes.clearness(np.zeros(2), np.zeros(2, np.uint8)) == -np.inf
