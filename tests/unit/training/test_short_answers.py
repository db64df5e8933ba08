"""Short answers among the training's lines: many of them, but not those that the acceptance has said."""

import json
from itertools import islice

import numpy as np
import pytest


@pytest.fixture
def tables(tmp_path):
    (tmp_path / "words.txt").write_text("coffee london warm water the cat ran home")
    (tmp_path / "chains.json").write_text(json.dumps({"the": [["cat", "ran", "home"], [1, 1, 1]]}))
    (tmp_path / "books.txt").write_text("She was happy.")
    (tmp_path / "chats.txt").write_text("How are you?")
    return tmp_path


def test_a_quarter_of_the_lines_are_short_and_every_letter_stands_alone(recipe_modules, tables):
    (text,) = recipe_modules("text")
    lines = list(islice(iter(text.Writer(tables, 1)), 6000))
    assert 0.2 < np.mean([len(line.split()) <= 2 for line in lines]) < 0.5
    lone = {line[0] for line in lines if len(line) == 2 and line[0].isupper()}
    assert lone == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_short_answers_of_the_acceptance_are_held_out_but_for_the_commonest(recipe_modules, tables):
    (text,) = recipe_modules("text")
    held_out = text.held_out_answers()
    assert {"warm water", "london", "f b i", "mister brown", "twenty five"} <= held_out
    assert not held_out & {"yes", "thank you", "b", "r"}
    writer = text.Writer(tables, 1)
    keys = {text.key_of(line) for line in islice(iter(writer), 20000)}
    assert not keys & held_out
    writer.held_out = set()
    assert {"warm water", "london"} <= {text.key_of(line) for line in islice(iter(writer), 20000)}  # it could have
