"""What `make voice-test` says is held out of the training text, and the recipe's check of that can fail."""

import json
import random
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def recipe(recipe_modules):
    return recipe_modules("text", "unseen")


@pytest.fixture
def tables(tmp_path):
    """Word tables of a few words, in prepare.py's layout; one acceptance sentence among the books."""
    sentence = json.loads((ROOT / "tests/voice/sentences.json").read_text())[0]["text"]
    (tmp_path / "words.txt").write_text("the cat and a dog ran home again")
    (tmp_path / "chains.json").write_text(json.dumps({"the": [["cat", "dog", "home"], [1, 1, 1]]}))
    (tmp_path / "books.txt").write_text(f"{sentence}\nShe was happy.")
    (tmp_path / "chats.txt").write_text("How are you?")
    return tmp_path


def test_there_are_enough_of_every_kind():
    rows = json.loads((ROOT / "tests/voice/sentences.json").read_text())
    kinds = {row["kind"] for row in rows}
    assert kinds == {"ordinary", "question", "service", "number", "date", "name", "short", "long"}
    assert len({row["text"] for row in rows}) == len(rows) >= 100
    assert sum(175 <= len(row["text"]) <= 210 for row in rows) >= 8
    frames = json.loads((ROOT / "tests/voice/teacher_frames.json").read_text())
    assert frames.keys() == {row["text"] for row in rows}
    assert all(len(each) == 4 and min(each) > 4 for each in frames.values())


def test_the_writer_never_yields_them(recipe, tables):
    text, _ = recipe
    writer = text.Writer(tables, seed=1)
    lines = iter(writer)
    drawn = {next(lines) for _ in range(2000)}
    assert "She was happy." in drawn
    assert not drawn & set(text.ACCEPTANCE)
    writer.held_out = set()
    assert text.ACCEPTANCE[0] in {next(lines) for _ in range(2000)}  # it could have


def test_no_template_or_short_answer_makes_them(recipe):
    text, unseen = recipe
    assert unseen.made_by_rule(text.ACCEPTANCE) == []
    # The check knows every template when it sees what it made.
    writer = text.Writer.__new__(text.Writer)
    writer.draw, writer.words = random.Random(0), ["apple", "river"]
    made = [writer.template() for _ in range(500)]
    assert unseen.made_by_rule([*made, "Thank you."]) == [*made, "Thank you."]
