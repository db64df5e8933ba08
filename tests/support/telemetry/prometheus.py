"""Debian's Prometheus next to a running chain: it scrapes all pages, as deploy/compose/prometheus.yaml says, and is asked
what the dashboards ask."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from support.telemetry import tables
from support.telemetry.recording import Series

PROMETHEUS, PROMTOOL = (
    shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name in ("prometheus", "promtool")
)
CONFIG = tables.DEPLOY / "compose" / "prometheus.yaml"

# (seconds, values) by legend.
Lines = dict[str, tuple[list[float], list[float]]]


class Prometheus:
    """An async context manager. At its exit `panels` has what each query of each dashboard gave, second by second."""

    def __init__(self, folder: Path, pages: dict[str, str]):
        """pages: service → the URL of its metrics."""
        self._folder, self._pages = folder, pages
        self._every_s, self._rate_s = 1, 8  # $__rate_interval, with a page read every second
        self.panels: dict[tuple[str, str], Lines] = {}

    async def __aenter__(self) -> Prometheus:
        config = yaml.safe_load(CONFIG.read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(tables.DEPLOY / "alerts" / "csm.rules.yaml")]
        config["scrape_configs"] = [
            job | {"static_configs": [{"targets": [urllib.parse.urlsplit(self._pages[service]).netloc]}]}
            for job in config["scrape_configs"]
            if (service := job["job_name"].removeprefix("csm-")) in self._pages
        ]
        await self._start(config)
        self._began_s = time.time()
        await self._until_scraped_after(self._began_s)
        return self

    async def __aexit__(self, kind: Any, *_: object) -> None:
        try:
            if kind is None:
                await self._until_scraped_after(time.time() + 2)  # queries look each second: past the last change
                await self._read_panels(self._began_s, time.time())
        finally:
            self._process.terminate()
            await self._process.wait()

    async def _start(self, config: dict[str, Any]) -> None:
        file = self._folder / "prometheus.yaml"
        file.write_text(yaml.safe_dump(config))
        assert PROMETHEUS is not None
        self._port = _free_port()
        self._process = await asyncio.create_subprocess_exec(
            PROMETHEUS, f"--config.file={file}", f"--storage.tsdb.path={self._folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self._port}", "--log.level=warn",
        )  # fmt: skip

    async def _read_panels(self, start_s: float, end_s: float) -> None:
        for path in sorted((tables.DEPLOY / "dashboards").glob("*.json")):
            for panel in json.loads(path.read_text())["panels"]:
                self.panels[path.stem, panel["title"]] = await self._lines(panel, start_s, end_s)

    async def firing(self) -> set[str]:
        """Names of the alerts that fire or are about to."""
        answer = await self._ask("alerts", {})
        return {alert["labels"]["alertname"] for alert in answer["alerts"]}

    async def _lines(self, panel: dict[str, Any], start_s: float, end_s: float) -> Lines:
        lines: Lines = {}
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", f"{self._rate_s}s")
            expr = expr.replace("$instance", ".*").replace("$namespace", ".*")
            asked = {"query": expr, "start": start_s, "end": end_s, "step": self._every_s}
            for series in (await self._ask("query_range", asked))["result"]:
                legend = target["legendFormat"]
                for label, value in series["metric"].items():
                    legend = legend.replace("{{" + label + "}}", value)
                legend = re.sub(r" *\{\{\w+\}\}", "", legend)  # a label that this series has not
                points = [(float(at), float(value)) for at, value in series["values"] if value != "NaN"]
                if points:
                    lines[legend] = ([at - start_s for at, _ in points], [value for _, value in points])
        return lines

    async def _until_scraped_after(self, at_s: float) -> None:
        """All pages."""
        async with asyncio.timeout(60):
            while True:
                try:
                    answer = await self._ask("query", {"query": "min(timestamp(up == 1))"})
                    count = await self._ask("query", {"query": "count(up == 1)"})
                    found = answer["result"] and float(answer["result"][0]["value"][1])
                    if found and found > at_s and int(count["result"][0]["value"][1]) == len(self._pages):
                        return
                except OSError:
                    pass  # it does not listen yet
                await asyncio.sleep(0.2)

    async def _ask(self, what: str, query: dict[str, Any]) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self._port}/api/v1/{what}?{urllib.parse.urlencode(query)}"

        def get() -> dict[str, Any]:
            with urllib.request.urlopen(url, timeout=20) as page:
                return json.load(page)["data"]

        return await asyncio.to_thread(get)


class Replayed(Prometheus):
    """The same over a recording: an async context manager with `panels` from its begin on."""

    def __init__(self, folder: Path, series: list[Series], every_s: int):
        super().__init__(folder, {})
        self._series, self._every_s, self._rate_s = series, every_s, 12 * every_s

    async def __aenter__(self) -> Prometheus:
        count = len(self._series[0].values)
        begun_s = int(time.time()) - 3600
        lines = [
            f"{each} {value!r} {begun_s + number * self._every_s}"
            for each in self._series
            for number, value in enumerate(each.values)
            if value is not None
        ]
        text = self._folder / "recording.om"
        text.write_text("\n".join(lines) + "\n# EOF\n")
        command = [str(PROMTOOL), "tsdb", "create-blocks-from", "openmetrics", str(text), str(self._folder / "tsdb")]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
        await self._start({"global": {}})
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    await self._ask("query", {"query": "1"})
                    break
                await asyncio.sleep(0.2)
        await self._read_panels(begun_s, begun_s + (count - 1) * self._every_s)
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._process.terminate()
        await self._process.wait()


def _free_port() -> int:
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]
