"""The tables of docs/telemetry.md, for tests that hold other things to them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DEPLOY = Path(__file__).parents[3] / "deploy"
SERVICES = ("gateway", "tokenizer", "backbone", "codec", "watermark")
RPC = {"rpc.system.name", "rpc.method", "rpc.response.status_code"}


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics. labels: as Prometheus has them."""

    name: str
    exposed: str
    type: str
    unit: str
    labels: frozenset[str]
    services: frozenset[str]

    @property
    def series(self) -> set[str]:
        """Names of its series in Prometheus."""
        if self.type == "histogram":
            return {f"{self.exposed}_{part}" for part in ("bucket", "sum", "count")}
        return {self.exposed}


def rows(header: str) -> list[list[str]]:
    """Cells of the table whose first column is called `header`."""
    text = (DEPLOY.parent / "docs" / "telemetry.md").read_text()
    body = text.split(f"\n| {header} |", 1)[1].split("\n", 2)[2].split("\n\n", 1)[0]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in body.splitlines()]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def one(cell: str) -> str:
    (name,) = quoted(cell)
    return name


def metrics() -> list[Metric]:
    found = []
    for name, exposed, kind, unit, labels, services, _ in rows("Metric"):
        who = SERVICES if services == "all" else services.split(", ")
        found.append(Metric(one(name), one(exposed), kind, one(unit), frozenset(quoted(labels)), frozenset(who)))
    return found


def spans() -> dict[tuple[str, str, str], tuple[set[str], set[str]]]:
    """(service, name, kind) → (attributes, events)."""
    found = {}
    for name, kind, service, attributes, events in rows("Span"):
        names = set(quoted(attributes))
        if "rpc.*" in names:
            names = names - {"rpc.*"} | RPC
        found[service, quoted(name)[0], kind] = names, set(quoted(events))
    return found


def attributes() -> dict[str, str]:
    """Attribute → type."""
    return {quoted(name)[0]: kind for name, kind, _ in rows("Attribute | Type")}


def events() -> dict[str, set[str]]:
    """Event → its attributes."""
    return {quoted(name)[0]: set(quoted(names)) for name, names, _ in rows("Event")}
