"""Five services as processes on this machine, `csm bench` against their gateway, and which of them gives out first.

`tests/gpu/bench_chain.sh` runs it. All from the environment:

    POINTS      streams and seconds of each point (see DEFAULT_POINTS in chain_setup.py); callers come spread over half of the
                seconds, four at most; each utterance that began in time is heard to its end
    LIMIT_S     for all of it (240): points that do not fit any more are left out, one under way is cut off
    READY_S     for the services to start (90)
    BUNDLE      a bundle's name or folder; unset: CSM-1B's shapes with random weights, made first (SHAPES_FOLDER
                keeps them there for the next run)
    DEVICE      cuda or cpu, of backbone, codec and watermark (cuda); WATERMARK_DEVICE for the last alone
    SLOTS       of backbone, codec and watermark (1024)
    GATEWAYS    processes behind one port (2)
    AUDIO_S     length of every utterance (20)
    TRACED      share of the requests that are traced (0.2)
    MPS         1: the processes share the GPU through NVIDIA's MPS, instead of taking turns on it (0)
    OUT         where its files go (out/chain)

Any CSM_… setting of the services that is set already stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from chain_setup import DEFAULT_POINTS, configure, facts, free_row, make_bundle, mps, setting
from chain_text import brief, use_text
from chain_use import Busy, Gpu, children, counters, cpu_s, histograms, memory_mb, read_page
from rich.console import Console

from gateway import state
from gateway.bench import report
from gateway.bench.plan import Plan as Load
from gateway.bench.plot import plot
from gateway.bench.stats import Point, Spread
from gateway.collector import Collector
from gateway.exceptions import SpeechError
from gateway.supervisor import Child, ChildDied, Supervisor
from gateway.traces import TraceStore
from gateway.up import STAGES, Deployment, Plan, deployment, free_ports
from services.runtime.settings import StartError

_BEGAN = time.monotonic() - max(0.0, time.time() - float(os.environ.get("BEGAN_S") or time.time()))
_RESERVE_S = 12.0  # to stop and to write
_CSM = (sys.executable, "-c", "import sys; from gateway.cli import main; sys.exit(main())")


def elapsed_s() -> float:
    return time.monotonic() - _BEGAN


def left_s() -> float:
    return float(setting("LIMIT_S", "240")) - elapsed_s() - _RESERVE_S


def say(text: str) -> None:
    print(f"[{elapsed_s():5.1f} s] {text}", flush=True)


class Chain:
    """The running chain as it is measured. pages: process → its metrics page."""

    def __init__(self, running: Deployment, pages: dict[str, str], gpu: Gpu, work: Path):
        self.running, self.pages, self.gpu, self.work = running, pages, gpu, work
        self.loads: list[Load] = []
        self.points: list[Point] = []
        self.uses: list[dict] = []

    async def point(self, streams: int, seconds: float) -> bool:
        """One `csm bench`, and what was used in it; whether it gave numbers."""
        folder = self.work / f"bench-{streams}-{len(self.points)}"
        before, start = await asyncio.to_thread(self._read), time.monotonic()
        clients_s = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        bench = await asyncio.create_subprocess_exec(
            *_CSM, "bench", "--address", self.running.address, "--streams", str(streams),
            "--duration", str(seconds), "--ramp-up", str(min(4.0, seconds / 2)), "--audio-seconds", setting("AUDIO_S", "20"),
            "--connections", "8", "-o", str(folder), stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        async with Busy(self.processes()) as busy:
            try:
                await asyncio.wait_for(asyncio.shield(bench.wait()), max(left_s(), 5))
            except TimeoutError:
                bench.terminate()  # it then tells what there is
                try:
                    await asyncio.wait_for(bench.wait(), 10)
                except TimeoutError:
                    bench.kill()
                    await bench.wait()
        end = time.monotonic()
        after = await asyncio.to_thread(self._read)
        if not (folder / "bench.json").is_file():
            say(f"{streams} streams: csm bench ended with {bench.returncode} and no numbers")
            return False
        told = json.loads((folder / "bench.json").read_text())["points"][0]
        self.loads.append(Load(**told.pop("plan")))
        self.points.append(_point(told))
        self.uses.append(self._use(before, after, start, end, busy.peaks()) | {
            "streams": streams, "clients_cpu_s": sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - clients_s,
        })  # fmt: skip
        return True

    def _read(self) -> dict:
        cpu = {}
        for name, pid in self.processes().items():
            with contextlib.suppress(OSError):  # it may have ended since
                cpu[name] = (pid, cpu_s(pid), memory_mb(pid))
        pages = {}
        for name, url in self.pages.items():
            with contextlib.suppress(OSError):  # who is gone is missing from the table; its callers' errors are in it
                pages[name] = read_page(url)
        return {"at": time.monotonic(), "cpu": cpu, "pages": pages}

    @staticmethod
    def processes() -> dict[str, int]:
        """Name → id, in the order they were started; the collector of traces is this one."""
        found: dict[str, int] = {}
        for pid, name in sorted(children().items()):
            if name in (*STAGES, "gateway"):
                count = sum(known.partition("-")[0] == name for known in found)
                found[f"{name}-{count + 1}" if count else name] = pid
        return found | {"collector": os.getpid()}

    def _use(self, before: dict, after: dict, start: float, end: float, peaks: dict) -> dict:
        wall_s = after["at"] - before["at"]
        shares = self.gpu.shares(start, end)
        processes = {}
        for name, (pid, cpu, memory) in after["cpu"].items():
            if name not in before["cpu"]:
                continue
            earlier = before["cpu"][name][1]
            cores = {key: (value - earlier.get(key, 0.0)) / wall_s for key, value in cpu.items()}
            total = cores.pop("all")
            peak = dict(peaks.get(name, {}))
            most = peak.pop("all", total)
            busiest = dict(sorted(peak.items(), key=lambda item: -item[1])[:4])
            processes[name] = {
                "cores": total, "peak_cores": most, "peak_threads": busiest, "memory_mb": memory,
                "gpu_percent": shares.get(pid),
            }  # fmt: skip
        pages = {
            name: {
                "histograms": {key: asdict(value) for key, value in histograms(before["pages"][name], page).items()},
                "counters": counters(before["pages"][name], page),
            }
            for name, page in after["pages"].items() if name in before["pages"]
        }  # fmt: skip
        return {"wall_s": wall_s, "gpu": self.gpu.between(start, end), "processes": processes, "metrics": pages}


def _point(told: dict) -> Point:
    """A point of csm bench's JSON."""
    for name in ("first_audio_s", "gap_s", "real_time_factor", "client_lag_s"):
        told[name] = told[name] and Spread(**told[name])
    for name in ("stage_s", "trace_s"):
        told[name] = {part: Spread(**spread) for part, spread in told[name].items()}
    return Point(**told)


async def load(chain: Chain, keep: Callable[[], None]) -> None:
    """A short point that does not count, then those of POINTS, while there is time."""
    out = chain.work / "warm-up"
    warm = await asyncio.create_subprocess_exec(
        *_CSM, "bench", "--address", chain.running.address, "--streams", "8", "--duration", "1",
        "--audio-seconds", "1", "-o", str(out), stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    say(f"warm: exit {await asyncio.wait_for(warm.wait(), max(left_s(), 5))}")
    for item in setting("POINTS", DEFAULT_POINTS).split():
        streams, _, seconds = item.partition(":")
        if left_s() < 10:
            say(f"{streams} streams: not run, the time is up")
        elif await chain.point(int(streams), float(seconds or 5)):
            keep()  # what there is, should a later point end it all
            say(brief(chain.points[-1], chain.uses[-1]))


def write(chain: Chain, facts: dict[str, str], out: Path) -> None:
    """The table of all points, in csm bench's own form, and what they used."""
    text = report.markdown(chain.loads, chain.points, facts) + "".join(map(use_text, chain.uses))
    (out / "chain.md").write_text(text)
    (out / "chain.json").write_text(report.to_json(chain.loads, chain.points, facts))
    (out / "use.json").write_text(json.dumps(chain.uses, indent=1) + "\n")
    (out / "gpu.csv").write_text(chain.gpu.csv(_BEGAN))
    plot(chain.points, out / "chain.png", is_rate=False, buffer_s=chain.loads[0].buffer_s)


def write_logs(logs: Path, out: Path, lines: int = 150) -> None:
    with (out / "logs.txt").open("w") as file:
        for log in sorted(logs.glob("*.log")):
            tail = log.read_text(errors="replace").splitlines()[-lines:]
            file.write(f"==> {log.name}\n" + "\n".join(line[:2000] for line in tail) + "\n\n")


async def run(work: Path, out: Path) -> int:
    device = setting("DEVICE", "cuda")
    async with mps(work) as shared:
        model = os.environ.get("BUNDLE") or await make_bundle(work / "bundle", device)
        say(f"bundle: {model}")
        ports, metrics = free_ports(), free_row(len(STAGES) + 1 + int(setting("GATEWAYS", "2")))
        configure(model, metrics)
        names = ("gateway", *STAGES)
        pages = {name: f"http://127.0.0.1:{metrics + index}/metrics" for index, name in enumerate(names)}
        plan = Plan(model, ports, work, ready_s=min(float(setting("READY_S", "90")), max(left_s(), 5)))
        try:
            async with contextlib.AsyncExitStack() as stack:
                collector = await stack.enter_async_context(Collector(TraceStore(work / "traces")))
                os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.endpoint  # for the gateways beside the first, too
                running = await stack.enter_async_context(deployment(plan, Console()))
                env = {"CSM_MODEL": model, "CSM_LISTEN": running.address, "CSM_LOG_FORMAT": "text", "CSM_GRACE_S": "5"}
                env |= {f"CSM_{name.upper()}_ADDRESS": plan.address(name) for name in STAGES}
                for number in range(2, int(setting("GATEWAYS", "2")) + 1):
                    listen = f"127.0.0.1:{metrics + len(names) + number - 2}"
                    pages[f"gateway-{number}"] = f"http://{listen}/metrics"
                    own = env | {"CSM_METRICS_LISTEN": listen}
                    child = Child(f"gateway-{number}", (sys.executable, "-m", "gateway"), running.address, own)
                    await stack.enter_async_context(Supervisor([child], work / "logs"))
                try:
                    await asyncio.wait_for(_pages_ready(pages), plan.ready_s)
                except TimeoutError:
                    raise StartError(f"not all of {', '.join(pages)} say on their metrics pages that they are ready") from None
                state.announce(state.Running(running.address, os.getpid(), str(work / "traces")), work)
                say("all ready")
                chain = Chain(running, pages, await stack.enter_async_context(Gpu()), work)
                try:
                    await load(chain, lambda: write(chain, facts(model, shared), out))
                finally:
                    if chain.points:
                        print((out / "chain.md").read_text().partition("\n## ")[0], flush=True)  # the table; the rest is in the file
            say("all stopped")
            return 0 if chain.points else 1
        except (ChildDied, StartError, SpeechError) as error:
            say(str(error))
            return 1
        finally:
            write_logs(work / "logs", out)
            if not (out / "chain.md").is_file():
                print((out / "logs.txt").read_text()[-8000:])


async def _pages_ready(pages: dict[str, str]) -> None:
    """Wait until every process says by its page that it is ready: of gateways on one port, health cannot tell which."""
    for url in pages.values():
        while True:
            with contextlib.suppress(OSError):
                page = await asyncio.to_thread(read_page, url)
                if any(key[0] == "csm_ready" and value for key, value in page.items()):
                    break
            await asyncio.sleep(0.1)


def main() -> int:
    out = Path(setting("OUT", "out/chain"))
    out.mkdir(parents=True, exist_ok=True)
    shm = Path("/dev/shm")  # 4 GB are written and read at once
    place = shm if shm.is_dir() and shutil.disk_usage(shm).free > 6e9 else None
    with tempfile.TemporaryDirectory(prefix="chain-", dir=place) as folder:
        os.environ["CSM_STATE_DIR"] = folder
        return asyncio.run(run(Path(folder), out))


if __name__ == "__main__":
    sys.exit(main())
