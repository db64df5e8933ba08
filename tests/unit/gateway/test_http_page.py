"""The page by itself: contrast in both schemes, a name for each control, nothing from anywhere else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "gateway" / "http" / "page"
# What stands on what.
PAIRS = [
    ("text", "ground"),
    ("text", "card"),
    ("soft", "ground"),
    ("soft", "card"),
    ("accent", "card"),
    ("on-accent", "accent"),
    ("bad", "card"),
    ("good", "card"),
]


def schemes() -> dict[str, dict[str, str]]:
    light, dark = re.findall(r":root \{(.*?)\}", (PAGE / "page.css").read_text(), re.DOTALL)
    return {
        name: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for name, block in (("light", light), ("dark", dark))
    }


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_contrast(scheme, pair):
    darker, lighter = sorted(luminance(schemes()[scheme][name]) for name in pair)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def elements():
    parser = Elements()
    parser.feed((PAGE / "index.html").read_text())
    return parser.found


def test_every_control_has_a_label_and_every_description_is_there():
    found = elements()
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = {attributes.get("for") for tag, attributes in found if tag == "label"}
    for tag, attributes in found:
        if tag in ("textarea", "select") or (tag == "input" and attributes.get("type") != "checkbox"):
            assert attributes["id"] in labels
        for name in ("aria-describedby", "aria-labelledby"):
            assert attributes.get(name, ids[0]) in ids
    assert ("html", {"lang": "en"}) in found


def test_nothing_comes_from_anywhere_else():
    for path in PAGE.iterdir():
        if path.suffix in (".html", ".css", ".js"):
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|@import|url\(", text), path.name
    sources = [value for _, attributes in elements() for name, value in attributes.items() if name in ("src", "href")]
    assert all(source.startswith(("page/", "#", "data:")) for source in sources)
