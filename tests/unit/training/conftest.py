"""The recipe of training/embedded, whose modules are programs beside one another."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

TRAIN = Path(__file__).parents[3] / "training/embedded"


@pytest.fixture
def recipe_modules(monkeypatch):
    """Call it with names for these modules. After the test they are forgotten, with what they imported of the recipe."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(TRAIN))
    yield lambda *names: tuple(import_module(name) for name in names)
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).parent == TRAIN:
            del sys.modules[name]
