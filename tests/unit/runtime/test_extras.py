"""What is said when an extra is not installed, by the metadata of the installed packages."""

from importlib import metadata
from pathlib import Path

import pytest

from services.runtime import extras

ROOT = Path(__file__).parents[3]
REQUIRES = [
    "csm-client~=0.2.0",
    "csm-serve[mimi]; extra == 'tokenizer'",
    "tokenizers>=0.21; extra == 'tokenizer'",
    "csm-serve[server,models]; extra == 'mimi'",
    "torch>=2.9; extra == 'mimi'",
    'numpy>=1.26; extra == "server"',
    "safetensors>=0.5; extra == 'models'",
    "matplotlib>=3.9; extra == 'bench'",
]


@pytest.fixture
def installed(monkeypatch):
    """installed(names): only these distributions are there."""

    def only(*names):
        def distribution(name):
            if name not in names:
                raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(extras.metadata, "distribution", distribution)
        monkeypatch.setattr(extras.metadata, "requires", lambda name: REQUIRES)

    return only


def test_all_there_is_silence(installed):
    installed("tokenizers", "torch", "numpy", "safetensors", "moshi")
    assert extras.missing_line("tokenizer") == ""
    extras.require_extra("tokenizer")


def test_what_is_missing_is_named_with_the_command_that_installs_it(installed):
    installed("numpy", "safetensors")
    line = "not installed: tokenizers, torch, moshi; pip install 'csm-serve[tokenizer]' and pip install --no-deps moshi==0.2.13"
    assert extras.missing_line("tokenizer") == line
    with pytest.raises(SystemExit, match="cannot start: not installed: tokenizers"):
        extras.require_extra("tokenizer")


def test_only_what_has_no_extra_is_missing(installed):
    installed("tokenizers", "torch", "numpy", "safetensors")
    assert extras.missing_line("tokenizer") == "not installed: moshi; pip install --no-deps moshi==0.2.13"


def test_copied_code_is_not_checked(monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras.metadata, "requires", requires)
    assert extras.missing_line("tokenizer") == ""


def test_the_pins_are_those_of_the_requirements_file():
    pins = {line.strip() for line in (ROOT / "requirements-nodeps.txt").read_text().splitlines()}
    assert {pin for pins in extras.NO_DEPS.values() for pin in pins} <= pins
    assert set(extras.NO_DEPS["all"]) == {pin for pins in extras.NO_DEPS.values() for pin in pins}
