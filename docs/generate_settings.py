"""Writes docs/settings.md from the settings' own classes: `python docs/generate_settings.py [file]`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from gateway.config import GatewaySettings
from gateway.http.config import HttpSettings
from services.backbone.config import BackboneSettings
from services.codec.config import CodecSettings
from services.runtime.settings import ServerSettings
from services.tokenizer.config import TokenizerSettings
from services.watermark.config import WatermarkSettings

PAGE = Path(__file__).with_name("settings.md")
SERVERS: dict[str, type[Any]] = {
    "Gateway": GatewaySettings,
    "Tokenizer": TokenizerSettings,
    "Backbone": BackboneSettings,
    "Codec": CodecSettings,
    "Watermark": WatermarkSettings,
    "HTTP": HttpSettings,
}
INTRO = """\
# Settings

`python docs/generate_settings.py` writes this page from the code; a test keeps it in step.

All settings come from the environment. A server checks them at start, prints them (secrets masked), and ends with one
line that names variable and limit when one cannot be used. `python -m services.codec --help` prints one server's.

Telemetry has OpenTelemetry's own variables: see [telemetry](telemetry.md).
"""


def page() -> str:
    """The page as Markdown."""
    common = {field.name: field.default for field in dataclasses.fields(ServerSettings)}
    parts = [INTRO, _table("Every gRPC server", ServerSettings, set(common) - {"listen"})]
    for title, settings in SERVERS.items():
        own = {f.name for f in dataclasses.fields(settings)}
        if issubclass(settings, ServerSettings):
            own = {f.name for f in dataclasses.fields(settings) if f.name not in common or f.default != common[f.name]}
        parts.append(_table(title, settings, own))
    return "\n".join(parts)


def _table(title: str, settings: type[Any], names: set[str]) -> str:
    rows = [f"## {title}\n", "| Variable | Default | Limits | What |", "|---|---|---|---|"]
    for field in dataclasses.fields(settings):
        if field.name in names:
            default = "" if field.default is None else f"`{field.default}`"
            meta = field.metadata
            rows.append(f"| `{meta['env']}` | {default} | {_limits(meta)} | {meta['doc']} |")
    return "\n".join(rows) + "\n"


def _limits(meta: dict) -> str:
    if meta["choices"]:
        return ", ".join(f"`{choice}`" for choice in meta["choices"])
    low, high = (f"{value:g}" if value is not None else "" for value in (meta["min"], meta["max"]))
    if low and high:
        return f"{low} to {high}"
    return f"≥ {low}" if low else f"≤ {high}" if high else ""


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else PAGE).write_text(page())
