"""What the README says of settings, ports and files is what the code says."""

import dataclasses
import re
from pathlib import Path

import pytest

from gateway.config import GatewaySettings
from models.bundle import load_bundle
from services.backbone.config import BackboneSettings
from services.codec.config import CodecSettings
from services.tokenizer.config import TokenizerSettings
from services.watermark.config import WatermarkSettings

README = (Path(__file__).parents[2] / "README.md").read_text()
SETTINGS = [GatewaySettings, TokenizerSettings, BackboneSettings, CodecSettings, WatermarkSettings]


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_setting_has_a_row_with_its_default(settings):
    for field in dataclasses.fields(settings):
        if field.metadata["env"] == "CSM_LISTEN":
            continue
        default = "" if field.default is None else f"`{field.default}`"
        assert f"| `{field.metadata['env']}` | {default} | {field.metadata['doc']} |" in README


def test_every_row_is_a_setting():
    known = {field.metadata["env"] for settings in SETTINGS for field in dataclasses.fields(settings)}
    assert set(re.findall(r"^\| `(CSM_\w+)` \|", README, re.MULTILINE)) == known


def test_ports_are_the_defaults():
    ports = dict(re.findall(r"^\| `(?:services\.)?(\w+)` \| (\d+) \|", README, re.MULTILINE))
    for settings in SETTINGS:
        name = settings.__name__.removesuffix("Settings").lower()
        (listen,) = (f.default for f in dataclasses.fields(settings) if f.name == "listen")
        assert listen == f"127.0.0.1:{ports[name]}"
        if name != "gateway":
            assert getattr(GatewaySettings(), name) == listen


def test_public_files_are_those_of_the_bundle():
    bundle = load_bundle("csm-1b")
    for part in (bundle.generator, bundle.text_tokenizer, bundle.mimi, bundle.watermark):
        for source in part.sources:
            assert source["repo"] in README
