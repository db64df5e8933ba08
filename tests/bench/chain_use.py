"""What the processes of a chain use while it is under load: processor, GPU, and what their metrics pages say.

Linux; nvidia-smi where there is one. Two readings and the time between them give one row of a table.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import shutil
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_SAMPLE = re.compile(r"^(csm_\w+?)(?:\{(.*)\})? (\S+)$", re.M)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_SCOPE = re.compile(r"otel_scope_\w+")
_QUERY = "index,utilization.gpu,utilization.memory,memory.used,power.draw,clocks.sm"


def children() -> dict[int, str]:
    """Our own child processes that serve something: id → CSM_LISTEN, where they do."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            with contextlib.suppress(OSError):  # it may have ended since
                words = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
                found |= {int(pid): word.partition("=")[2] for word in words if word.startswith("CSM_LISTEN=")}
    return found


def cpu_s(pid: int) -> dict[str, float]:
    """Processor seconds of a process, `all` of it and of each of its threads (`name/id`)."""
    found = {}
    for name, stat in [
        ("all", Path(f"/proc/{pid}/stat")),
        *((None, p / "stat") for p in Path(f"/proc/{pid}/task").iterdir()),
    ]:
        with contextlib.suppress(OSError):  # a thread may have ended since
            before, _, after = stat.read_text().rpartition(")")
            fields = after.split()
            thread = stat.parent.name
            key = name or ("main" if thread == str(pid) else f"{before.partition('(')[2]}/{thread}")
            found[key] = (int(fields[11]) + int(fields[12])) * _TICK_S
    return found


def memory_mb(pid: int) -> float:
    """Resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def read_page(url: str) -> dict[tuple[str, str], float]:
    """A metrics page: (name, labels) → value, of our own metrics alone."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        text = answer.read().decode()
    found = {}
    for name, labels, value in _SAMPLE.findall(text):
        kept = {key: said for key, said in _LABEL.findall(labels) if not _SCOPE.match(key)}
        found[name, ",".join(f"{key}={said}" for key, said in sorted(kept.items()))] = float(value)
    return found


@dataclass(frozen=True)
class Reading:
    """What all processes have used and told so far. cpu: name → (id, cpu_s, memory_mb). pages: name → read_page."""

    at: float
    cpu: dict[str, tuple[int, dict[str, float], float]]
    pages: dict[str, dict[tuple[str, str], float]]

    @classmethod
    def now(cls, pids: Mapping[str, int], pages: Mapping[str, str]) -> Reading:
        """pids: name → id; pages: name → where its metrics are. A process that is gone is missing; its callers' errors are reported."""
        cpu, told = {}, {}
        for name, pid in pids.items():
            with contextlib.suppress(OSError):
                cpu[name] = (pid, cpu_s(pid), memory_mb(pid))
        for name, url in pages.items():
            with contextlib.suppress(OSError):
                told[name] = read_page(url)
        return cls(time.monotonic(), cpu, told)


def use_between(before: Reading, after: Reading, peaks: Mapping[str, Mapping[str, float]], gpu: Gpu) -> dict[str, Any]:
    """What was used between two readings, for JSON."""
    wall_s, shares, processes, metrics = after.at - before.at, gpu.shares(before.at, after.at), {}, {}
    for name, (pid, cpu, memory) in after.cpu.items():
        if name not in before.cpu:
            continue
        earlier = before.cpu[name][1]
        cores = {key: (value - earlier.get(key, 0.0)) / wall_s for key, value in cpu.items()}
        total = cores.pop("all", 0.0)
        peak = dict(peaks.get(name, {}))
        most = peak.pop("all", total)
        processes[name] = {
            "cores": total, "peak_cores": most, "memory_mb": memory, "gpu_percent": shares.get(pid),
            "threads": dict(sorted(cores.items(), key=lambda item: -item[1])[:4]),
            "peak_threads": dict(sorted(peak.items(), key=lambda item: -item[1])[:4]),
        }  # fmt: skip
    for name, page in after.pages.items():
        if name in before.pages:
            spreads = histograms(before.pages[name], page)
            metrics[name] = {
                "histograms": {key: asdict(value) for key, value in spreads.items()},
                "counters": counters(before.pages[name], page),
            }
    gpus = gpu.between(before.at, after.at)
    return {"wall_s": wall_s, "gpus": gpus, "processes": processes, "metrics": metrics}


class Busy:
    """`async with`: processor use of processes, once a second."""

    def __init__(self, processes: dict[str, int]):
        self._processes = processes
        self._readings: list[tuple[float, dict[str, dict[str, float]]]] = []

    async def __aenter__(self) -> Busy:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()

    async def _watch(self) -> None:
        while True:
            reading = await asyncio.to_thread(self._read)
            self._readings.append((time.monotonic(), reading))
            await asyncio.sleep(1)

    def _read(self) -> dict[str, dict[str, float]]:
        return {name: cpu_s(pid) for name, pid in self._processes.items()}

    def peaks(self) -> dict[str, dict[str, float]]:
        """Process → `all` and each of its threads → cores in its own busiest second."""
        peaks: dict[str, dict[str, float]] = defaultdict(dict)
        for (start, earlier), (end, later) in itertools.pairwise(self._readings):
            for name, threads in later.items():
                for key, value in threads.items():
                    cores = (value - earlier.get(name, {}).get(key, 0.0)) / (end - start)
                    peaks[name][key] = max(peaks[name].get(key, 0.0), cores)
        return dict(peaks)


@dataclass
class Spread:
    """What a histogram took in between two readings; p95 is the upper edge of the bucket that it lies in."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float


def histograms(before: dict[tuple[str, str], float], after: dict[tuple[str, str], float]) -> dict[str, Spread]:
    """`name{labels}` → what came between two readings of a page."""
    buckets: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for (name, labels), value in after.items():
        if name.endswith("_bucket"):
            rest = ",".join(part for part in labels.split(",") if not part.startswith("le="))
            edge = float(next(part for part in labels.split(",") if part.startswith("le="))[3:])
            buckets[name.removesuffix("_bucket"), rest].append((edge, value - before.get((name, labels), 0.0)))
    found = {}
    for (name, labels), edges in sorted(buckets.items()):
        edges.sort()
        if count := edges[-1][1]:
            total = after[name + "_sum", labels] - before.get((name + "_sum", labels), 0.0)
            marks = [next(edge for edge, below in edges if below >= share * count) for share in (0.5, 0.95, 0.99)]
            found[f"{name}{{{labels}}}" if labels else name] = Spread(int(count), total / count, *marks)
    return found


def counters(before: dict[tuple[str, str], float], after: dict[tuple[str, str], float]) -> dict[str, float]:
    """`name{labels}` → growth of every counter that grew."""
    grown = {key: value - before.get(key, 0.0) for key, value in after.items() if key[0].endswith("_total")}
    return {f"{name}{{{labels}}}": value for (name, labels), value in sorted(grown.items()) if value}


@dataclass
class Gpu:
    """`async with`: what nvidia-smi says, twice a second of each GPU and once of each process; nothing without it.

    device: (when, numbers of _QUERY), a row for each GPU. processes: (when, process id, share of the time that it had the GPU, %).
    """

    device: list[tuple[float, list[float]]] = field(default_factory=list)
    processes: list[tuple[float, int, float]] = field(default_factory=list)

    async def __aenter__(self) -> Gpu:
        self._running: list[asyncio.subprocess.Process] = []
        self._readers: list[asyncio.Task] = []
        if shutil.which("nvidia-smi"):
            query = ("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", "-lms", "500")
            await self._start(query, self._read_device)
            await self._start(("nvidia-smi", "pmon", "-s", "u", "-d", "1"), self._read_process)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await asyncio.gather(*self._readers)

    async def _start(self, command: tuple[str, ...], take) -> None:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._running.append(process)
        self._readers.append(asyncio.create_task(self._read(process, take)))

    async def _read(self, process: asyncio.subprocess.Process, take) -> None:
        async for line in process.stdout:
            with contextlib.suppress(ValueError, IndexError):  # headings, and what this device does not tell
                take(line.decode())

    def _read_device(self, line: str) -> None:
        self.device.append((time.monotonic(), [float(value) for value in line.split(",")]))

    def _read_process(self, line: str) -> None:
        _, pid, _, share = line.split()[:4]
        self.processes.append((time.monotonic(), int(pid), 0.0 if share == "-" else float(share)))

    def between(self, start: float, end: float) -> dict[str, dict[str, float]]:
        """GPU → means over a time, by the names of _QUERY; empty when nothing was read in it."""
        names = _QUERY.split(",")[1:]
        rows: dict[str, list[list[float]]] = defaultdict(list)
        for when, (index, *numbers) in self.device:
            if start <= when <= end:
                rows[f"{index:.0f}"].append(numbers)
        return {
            index: dict(zip(names, (sum(column) / len(found) for column in zip(*found, strict=True)), strict=True))
            for index, found in sorted(rows.items())
        }

    def shares(self, start: float, end: float) -> dict[int, float]:
        """Process id → mean share of the GPU's time over a time, %."""
        shares: dict[int, list[float]] = defaultdict(list)
        for when, pid, share in self.processes:
            if start <= when <= end:
                shares[pid].append(share)
        return {pid: sum(values) / len(values) for pid, values in shares.items()}

    def csv(self, began: float) -> str:
        """All that was read of the device."""
        rows = (f"{when - began:.1f},{','.join(f'{number:g}' for number in numbers)}" for when, numbers in self.device)
        return "\n".join([f"s,{_QUERY}", *rows]) + "\n"
