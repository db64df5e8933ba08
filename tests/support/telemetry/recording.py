"""A recording of all metrics of the chain under load, as promtool's tests take series.

tests/data/carried.yaml is one, of a load that the machine carried; RECORD of tests/bench/bench_chain.py makes others.
Made again on an idle machine (five minutes):

    PYTHONPATH=tests:. python -m support.telemetry.recording --streams 2 --seconds 300 -o tests/data/carried.yaml
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from support.telemetry import promql, tables
from support.telemetry.running_chain import running_chain

EVERY_S = 5
_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Values = list[float | None]  # None: not there yet


@dataclass(frozen=True)
class Series:
    """values: one for each scrape."""

    name: str
    labels: tuple[tuple[str, str], ...]
    values: Values

    def __str__(self) -> str:
        return self.name + "{" + ",".join(f'{key}="{value}"' for key, value in self.labels) + "}"

    @property
    def is_counter(self) -> bool:
        return self.name.endswith(("_total", "_bucket", "_count", "_sum"))

    def label(self, name: str) -> str:
        return dict(self.labels).get(name, "")


def load(path: Path) -> tuple[dict[str, Any], list[Series]]:
    """(what was run, its series)."""
    document = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    found = []
    for service, series in document["series"].items():
        for text, values in series.items():
            match = re.fullmatch(r"([\w:]+)(?:\{(.*)\})?", text)
            assert match is not None, text
            labels = dict(_LABEL.findall(match[2] or "")) | _of_target(service)
            found.append(Series(match[1], tuple(sorted(labels.items())), _expanded(values)))
    return document["run"], found


def asked_for() -> set[str]:
    """Names of the series that our rules and panels look at."""
    rules = yaml.safe_load((tables.DEPLOY / "alerts" / "csm.rules.yaml").read_text())["groups"]
    exprs = [rule["expr"] for group in rules for rule in group["rules"]]
    for path in (tables.DEPLOY / "dashboards").glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            exprs += [target["expr"].replace("$__rate_interval", "5m") for target in panel["targets"]]
    return {name for expr in exprs for name, _ in promql.parse(expr).selectors}


def repeated(series: list[Series], times: int) -> list[Series]:
    """The same stretch over and over: counters go on from where they were, gauges begin again."""
    return [replace(each, values=_again(each, times)) for each in series]


def input_series(series: list[Series]) -> list[dict[str, str]]:
    """As promtool's tests take them."""
    return [{"series": str(each), "values": _packed(each.values)} for each in series]


def _again(series: Series, times: int) -> Values:
    there = [value for value in series.values if value is not None]
    grown = (there[-1] - there[0]) if series.is_counter and there else 0.0
    values: Values = list(series.values)
    for number in range(1, times):
        # One that came late was at its first value, with nothing counted.
        values += [(there[0] if value is None else value) + number * grown for value in series.values]
    return values


def _packed(values: Values) -> str:
    """promtool's notation: `a+bxN` is a and N more, each b larger; `_xN` is N times nothing."""
    parts, at = [], 0
    while at < len(values):
        first, end = values[at], at + 1
        if first is None:
            while end < len(values) and values[end] is None:
                end += 1
            parts.append(f"_x{end - at}")
        else:
            step = None
            while end < len(values) and (value := values[end]) is not None:
                before = values[end - 1]
                assert before is not None
                if step is None:
                    step = value - before
                elif value != before + step:
                    break
                end += 1
            if step is None or end - at == 2:  # alone, or with a neighbour that leads nowhere
                parts.append(_number(first))
                end = at + 1
            else:
                sign = "+" if step >= 0 else "-"
                parts.append(f"{_number(first)}{sign}{_number(abs(step))}x{end - at - 1}")
        at = end
    return " ".join(parts)


def _number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _expanded(text: str) -> Values:
    values: Values = []
    for part in str(text).split():
        if match := re.fullmatch(r"_x(\d+)", part):
            values += [None] * int(match[1])
        elif match := re.fullmatch(r"(-?[\d.]+(?:e[+-]?\d+)?)([+-][\d.]+(?:e[+-]?\d+)?)x(\d+)", part):
            first, step = float(match[1]), float(match[2])
            values.append(first)
            for _ in range(int(match[3])):
                last = values[-1]
                assert last is not None
                values.append(last + step)
        else:
            values.append(float(part))
    return values


def _of_target(process: str) -> dict[str, str]:
    """What a scrape in a cluster adds. process: a service's first is named as the service, its others `codec-2`, …"""
    return {"job": f"csm-{process.partition('-')[0]}", "instance": f"{process}:9464", "namespace": "csm"}


Scrape = dict[tuple[str, str], float]  # by (service, series)


def parse(service: str, page: str, names: set[str]) -> Scrape:
    """One page: the series of those names, without OpenTelemetry's scope."""
    found = {}
    for line in page.splitlines():
        if (match := _LINE.match(line.split(" # ")[0])) and match[1] in names:
            own = [f'{key}="{value}"' for key, value in _LABEL.findall(match[2] or "") if not key.startswith("otel_")]
            found[service, match[1] + (f"{{{', '.join(own)}}}" if own else "")] = float(match[3])
    return found


async def scrape_all(urls: Mapping[str, str], names: set[str]) -> Scrape:
    """The pages of all processes, by their names. Raises: OSError."""
    pages = await asyncio.gather(*(asyncio.to_thread(_get, url) for url in urls.values()))
    return {k: v for name, page in zip(urls, pages, strict=True) for k, v in parse(name, page, names).items()}


async def record(streams: int, seconds: int, folder: Path) -> list[Scrape]:
    """Run the chain with the bundled model, `streams` callers who hear their utterances out, and scrape it."""
    settings = {"CSM_INSECURE": "plaintext,no-tokens", "CSM_METRICS_LISTEN": "127.0.0.1:0"}
    scrapes: list[Scrape] = []
    names = asked_for()
    async with running_chain(folder, settings) as (gateway, urls):
        bench = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.cli", "bench", "--address", gateway, "--streams", str(streams),
            "--listen", "--duration", str(seconds + 15), "--output", str(folder / "bench"),
        )  # fmt: skip
        await asyncio.sleep(10)  # the callers have come
        begun = time.monotonic()
        for number in range(seconds // EVERY_S + 1):
            await asyncio.sleep(max(0.0, begun + number * EVERY_S - time.monotonic()))
            scrapes.append(await scrape_all(urls, names))
        await bench.wait()
    print((folder / "bench/bench.md").read_text())
    return scrapes


def document(run: Mapping[str, Any], scrapes: Sequence[Scrape]) -> str:
    """As `load` reads it. run: what was run; `every_s` is the time between two scrapes."""
    text = "# Written by tests/support/telemetry/recording.py: the chain under load.\n"
    text += yaml.safe_dump({"run": dict(run)}, sort_keys=False) + "series:\n"
    for service in sorted({service for scrape in scrapes for service, _ in scrape}):
        text += f"  {service}:\n"
        for key in sorted({key for scrape in scrapes for key in scrape if key[0] == service}):
            text += f"    {_quoted(key[1])}: {_quoted(_packed([scrape.get(key) for scrape in scrapes]))}\n"
    return text


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=4) as page:
        return page.read().decode()


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the chain's metrics under load.")
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--on", default="", help="the machine, for the record")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scrapes = asyncio.run(record(options.streams, options.seconds, Path(folder)))
    run = {
        "bundle": "embedded",
        "callers": options.streams,
        "seconds": options.seconds,
        "every_s": EVERY_S,
        "on": options.on,
        "date": time.strftime("%Y-%m-%d"),
    }
    options.output.write_text(document(run, scrapes))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


if __name__ == "__main__":
    main()
