"""Words that a reader of serving code should not have to learn: none is left in code, tests or documents."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# CONTRIBUTING has the terms that are used instead.
OLD = {
    "buffer underrun": r"\b(?:runs?|ran|running) dry\b|\bdry_(?:s|streams)\b",
    "a name, or a passive": r"\b(?:whoever|nobody|nobody's|somebody|somebody's)\b",
    "again": r"\banew\b",
    "from now on": r"\bhenceforth\b",
    "the bundled model": r"\bin the box\b",
    "gets, receives": r"\b(?:is|are|was|were|be) told\b",
    "depends on": r"\bhangs? on\b",
    "N": r"\bof so many\b",
    "mutated": r"\bspoilt\b|\bspoils?\b",
    "batch policy": r"\bcompany\.py\b|\bin company\b",
    "prompt_tokens, max_seq_len, prefix_hit_tokens": r"\b(?:prompt_rows|max_rows|shared_rows|hit_rows)\b",
}
# What people said or wrote is not ours to change.
QUOTED = (
    "CHANGELOG.md",
    "gateway/cli/bench/sentences.txt",
    "models/embedded/tokenizer.json",
    "tests/unit/test_words.py",
    "tests/voice/sentences.json",
    "tests/voice/teacher_frames.json",
    "training/embedded/held_out.json",
    "training/embedded/text.py",
    "training/noise/text_tokenizer.py",
)


def texts() -> dict[str, str]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    found = {}
    for name in listed.stdout.splitlines() if listed.returncode == 0 else ():
        if name not in QUOTED and (path := ROOT / name).is_file():
            data = path.read_bytes()
            if b"\0" not in data and len(data) < 1_000_000:
                found[name] = data.decode()
    return found


@pytest.fixture(scope="module")
def tree() -> dict[str, str]:
    found = texts()
    if not found:
        pytest.skip("not a checkout")
    return found


def uses(pattern: str, tree: dict[str, str]) -> list[str]:
    seen = re.compile(pattern, re.IGNORECASE)
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in tree.items()
        if seen.search(text)
        for number, line in enumerate(text.splitlines(), 1)
        if seen.search(line)
    ]


@pytest.mark.parametrize("better", OLD)
def test_old_words_are_gone(tree, better):
    assert uses(OLD[better], tree) == []


def test_the_search_can_find():
    planted = {"a.py": "# the stream runs dry\n", "b.md": "Nobody is told."}
    assert uses(OLD["buffer underrun"], planted) == ["a.py:1: # the stream runs dry"]
    assert uses(OLD["gets, receives"], planted) == ["b.md:1: Nobody is told."]


def test_the_whole_tree_is_searched(tree):
    assert len(tree) > 400 and {"README.md", "Makefile", "protos/csm/speech/v1/speech.proto"} <= tree.keys()
