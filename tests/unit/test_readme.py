"""What the documents say of settings, ports and files is what the code says."""

import dataclasses
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.config import GatewaySettings
from models.bundle import load_bundle

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
GENERATOR = runpy.run_path(str(ROOT / "docs" / "generate_settings.py"))


def test_settings_page_is_what_the_code_gives():
    assert (ROOT / "docs" / "settings.md").read_text() == GENERATOR["page"](), "run: python docs/generate_settings.py"


def test_command_page_is_what_the_command_says():
    page = runpy.run_path(str(ROOT / "docs" / "generate_command.py"))["page"]
    assert (ROOT / "docs" / "command.md").read_text() == page(), "run: python docs/generate_command.py"


def test_ports_are_the_defaults():
    ports = dict(re.findall(r"^\| `(?:\w+\.)?(\w+)` \| (\d+) \|", README, re.MULTILINE))
    for title, settings in GENERATOR["SERVERS"].items():
        name = title.lower()
        (listen,) = (f.default for f in dataclasses.fields(settings) if f.name == "listen")
        assert listen == f"127.0.0.1:{ports[name]}"
        if name == "http":
            assert settings().gateway == GatewaySettings().listen
        elif name != "gateway":
            assert getattr(GatewaySettings(), name) == listen


def test_public_files_are_those_of_the_bundle():
    page = (ROOT / "docs" / "weights.md").read_text()
    bundle = load_bundle("csm-1b")
    for part in (bundle.generator, bundle.text_tokenizer, bundle.mimi, bundle.watermark):
        for source in part.sources:
            assert source["repo"] in page


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_links_lead_somewhere():
    def anchor(heading: str) -> str:
        return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")

    folders = ("docs", "deploy", "examples", "tests", "training", "models")
    pages = [*ROOT.glob("*.md"), *(page for folder in folders for page in (ROOT / folder).rglob("*.md"))]
    for page in pages:
        for name, part in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", page.read_text()):
            target = page.parent / name if name else page
            assert target.exists(), f"{page.relative_to(ROOT)}: {name}"
            if part:
                headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                assert part in map(anchor, headings), f"{page.relative_to(ROOT)}: {name}#{part}"


def _number_of_tests(request: pytest.FixtureRequest) -> int:
    """As this run has collected them, where it runs them all: another pytest takes ten seconds to."""
    config = request.config
    if [Path(each).resolve() for each in config.args] == [ROOT / "tests"] and not config.option.keyword:
        return len(request.session.items)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    counted = re.search(r"^(\d+)/\d+ tests collected", text, re.MULTILINE)
    assert counted, text[-2000:]
    return int(counted[1])


def test_the_line_that_make_test_ends_with_has_the_number_of_tests(request):
    """Those that pass and those that are skipped together, within a hundredth."""
    line = re.search(r"^=+ (\d+) passed, (\d+) skipped in ", README, re.MULTILINE)
    assert line
    written = int(line[1]) + int(line[2])
    assert written == pytest.approx(_number_of_tests(request), rel=0.01), "README.md: write what `make test` ends with"
