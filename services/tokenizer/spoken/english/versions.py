"""Version numbers: 2.0.1, v3, Python 3.11."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.numbers import cardinal, digits

_DOTTED = re.compile(
    r"(?<![\w.,])([vV]\.?\s?)?(\d{1,4}(?:\.\d{1,4}){2,})([a-z]+\d*)?(?:-((?:alpha|beta|rc|dev|pre|post|preview)\.?\d*))?(?![\w]|\.\d)"
)
_NAMED = re.compile(
    r"\b((?:[Vv]ersion|[Rr]elease|Python|Ubuntu|Debian|Java|Node|PHP|Ruby|Go|iOS|macOS|Android|Firefox|Safari|CUDA|Django|Kubernetes|Rust|"
    r"PyTorch|TensorFlow|Bluetooth|Linux|kernel)\s)(\d{1,3}\.\d{1,3})(?![\w]|\.\d)"
)
_ANY_LAST = re.compile(r"(?<![\w.,])([vV]\.?\s?)?(\d{1,4}(?:\.\d{1,4})*)\.x(?![\w])")
_LABEL = r"(?:-?((?:alpha|beta|rc|dev|pre|post|preview)\.?\d*))?"
_PREFIXED = re.compile(rf"(?<![\w.,])(?:v|V(?=\d+\.))(\d{{1,4}}(?:\.\d{{1,4}})?){_LABEL}(?![\w]|\.\d)")
_LABELS = {"rc": "release candidate", "dev": "dev", "pre": "pre", "post": "post", "alpha": "alpha", "beta": "beta", "preview": "preview",
           "a": "alpha", "b": "beta"}  # fmt: skip


def read_versions(text: str) -> str:
    """`v2.0.1` → version two point zero point one."""
    text = _DOTTED.sub(_dotted, text)
    if ".x" in text:
        text = _ANY_LAST.sub(lambda m: _dotted_name(m) + " point x", text)
    text = _NAMED.sub(lambda m: m[1] + _points(m[2]), text)
    text = _PREFIXED.sub(lambda m: f"version {_points(m[1])}" + (f" {_label(m[2])}" if m[2] else ""), text)
    return text.replace("§§", " sections ").replace("§", " section ") if "§" in text else text


def _dotted(match: re.Match[str]) -> str:
    words = _dotted_name(match)
    return words + (f" {_label(match[3])}" if match[3] else "") + (f" {_label(match[4])}" if match[4] else "")


def _dotted_name(match: re.Match[str]) -> str:
    before = match.string[: match.start()].rstrip().lower()
    return ("version " if match[1] and not before.endswith("version") else "") + _points(match[2])


def _points(text: str) -> str:
    return " point ".join(
        cardinal(part) if part[0] != "0" or len(part) == 1 else digits(part) for part in text.split(".")
    )


def _label(text: str) -> str:
    name = re.match(r"[a-z]+", text)
    word = name[0] if name else ""
    number = re.sub(r"\D", "", text)
    return f"{_LABELS.get(word, ' '.join(word.upper()))} {cardinal(number) if number else ''}".strip()
