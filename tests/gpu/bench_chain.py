"""Five services as processes on this machine, `csm bench` against their gateway, and which of them gives out first.

`tests/gpu/bench_chain.sh` runs it. All from the environment:

    POINTS      streams and seconds of each point (see DEFAULT_POINTS); callers come spread over half of the
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
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

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

DEFAULT_POINTS = "1:8 16:5 64:5 256:6 512:6 1000:8"
_BEGAN = time.monotonic() - max(0.0, time.time() - float(os.environ.get("BEGAN_S") or time.time()))
_BRIEF = {
    "event_loop_lag": "loop lag", "stage_queue": "queue", "stage_chunk": "chunk", "frame_step": "step",
    "backbone_prefill": "prefill", "backbone_queue": "queue",
}  # fmt: skip
_RESERVE_S = 12.0  # to stop and to write
_BLOCKS_A_SLOT = 24  # of 16 rows: a prompt of 130 and 20 s of speech
_HERE = Path(__file__).parent
_CSM = (sys.executable, "-c", "import sys; from gateway.cli import main; sys.exit(main())")


def setting(name: str, default: str) -> str:
    return os.environ.get(name) or default


def elapsed_s() -> float:
    return time.monotonic() - _BEGAN


def left_s() -> float:
    return float(setting("LIMIT_S", "240")) - elapsed_s() - _RESERVE_S


def say(text: str) -> None:
    print(f"[{elapsed_s():5.1f} s] {text}", flush=True)


async def make_bundle(folder: Path, device: str) -> str:
    """CSM-1B's shapes with random weights; the generator on the device while the CPU makes the rest."""
    folder = Path(setting("SHAPES_FOLDER", str(folder)))
    if not (folder / "generator/model.safetensors").is_file():
        parts = (["tokenizer", "watermark", "mimi"], ["generator", "--device", device])
        makers = [
            await asyncio.create_subprocess_exec(sys.executable, _HERE / "bundle_csm_1b.py", folder, *part) for part in parts
        ]
        if any([await maker.wait() for maker in makers]):
            raise StartError("the bundle could not be made")
    return str(folder)


def configure(model: str, metrics: int) -> None:
    """Settings of the services, in our own environment, which theirs begins with."""
    device, slots = setting("DEVICE", "cuda"), int(setting("SLOTS", "1024"))
    on_gpu = device.startswith("cuda")
    wanted = {
        "CSM_BACKBONE_DEVICE": device, "CSM_CODEC_DEVICE": device,
        "CSM_WATERMARK_DEVICE": setting("WATERMARK_DEVICE", device),
        "CSM_BACKBONE_RUNNER": "graph" if on_gpu else "eager",
        "CSM_BACKBONE_DTYPE": "bfloat16" if on_gpu else "auto",
        "CSM_BACKBONE_SLOTS": slots, "CSM_CODEC_SLOTS": slots, "CSM_WATERMARK_STREAMS": slots,
        "CSM_BACKBONE_QUEUE": slots, "CSM_GATEWAY_MAX_STREAMS": 2 * slots,
        # As many as are needed, not all that fits: codec and watermark live on the same device.
        "CSM_BACKBONE_BLOCKS": max(128, _BLOCKS_A_SLOT * slots),
        "CSM_BACKBONE_PREFILL_ROWS": 512 if on_gpu else 64,
        "CSM_WATERMARK_KEY": secrets.token_hex(5),
        "CSM_SHARE_PORT": "true", "CSM_METRICS_LISTEN": f"127.0.0.1:{metrics}",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": setting("TRACED", "0.2"),
    }  # fmt: skip
    if model == "embedded":
        del wanted["CSM_WATERMARK_KEY"]
    for name, value in wanted.items():
        os.environ.setdefault(name, str(value))


@contextlib.asynccontextmanager
async def mps(folder: Path):
    """NVIDIA's daemon that lets kernels of several processes run side by side; for our processes alone."""
    if setting("MPS", "0") != "1":
        yield False
        return
    os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps-log")}
    for name in ("mps", "mps-log"):
        (folder / name).mkdir()
    daemon = await asyncio.create_subprocess_exec("nvidia-cuda-mps-control", "-f", stdin=asyncio.subprocess.DEVNULL)
    try:
        yield True
    finally:
        quitting = await asyncio.create_subprocess_exec("nvidia-cuda-mps-control", stdin=asyncio.subprocess.PIPE)
        await quitting.communicate(b"quit\n")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(daemon.wait(), 5)
        with contextlib.suppress(ProcessLookupError):
            daemon.kill()


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


def use_text(use: dict) -> str:
    """What one point took, as Markdown."""
    lines = ["", f"## What {use['streams']} streams took, over {use['wall_s']:.1f} s", ""]
    if use["gpu"]:
        lines += ["GPU: " + ", ".join(f"{name} {value:.0f}" for name, value in use["gpu"].items()), ""]
    lines += [f"Load tool: {use['clients_cpu_s'] / use['wall_s']:.2f} cores.", ""]
    lines += ["| process | cores | in its busiest second | GPU % | MB | threads, each in its busiest second |", "|---|---|---|---|---|---|"]
    for name, took in use["processes"].items():
        gpu = "" if took["gpu_percent"] is None else f"{took['gpu_percent']:.0f}"
        threads = ", ".join(f"{thread} {cores:.2f}" for thread, cores in took["peak_threads"].items() if cores >= 0.02)
        lines.append(f"| {name} | {took['cores']:.2f} | {took['peak_cores']:.2f} | {gpu} | {took['memory_mb']:.0f} | {threads} |")
    lines += ["", "| process | histogram (ms; p95 by bucket) | count | mean | p50 ≤ | p95 ≤ | p99 ≤ |", "|---|---|---|---|---|---|---|"]
    for process, page in use["metrics"].items():
        for name, spread in page["histograms"].items():
            times = 1000 if "_seconds" in name else 1
            cells = " | ".join(f"{spread[key] * times:.1f}" for key in ("mean", "p50", "p95", "p99"))
            lines.append(f"| {process} | {name.replace('_seconds', '')} | {spread['count']} | {cells} |")
        if page["counters"]:
            grown = ", ".join(f"{name} {value:g}" for name, value in page["counters"].items())
            lines.append(f"| {process} | {grown} | | | | | |")
    return "\n".join(lines) + "\n"


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


def brief(point: Point, use: dict) -> str:
    """A point in a few lines, for who watches."""
    first = point.first_audio_s
    lines = [
        f"{point.label} streams: {point.ok} well, {point.errors or 'no errors'}, "
        + (f"first audio p50 {first.p50 * 1000:.0f} p95 {first.p95 * 1000:.0f} ms, " if first else "")
        + f"{point.dry_streams} of {point.measured} ran dry, {point.real_time_streams:.0f} s of audio a second"
        + (f"; GPU {use['gpu']['utilization.gpu']:.0f} %" if use["gpu"] else "")
    ]
    for name, took in use["processes"].items():
        text = f"    {name:<10} peak cores {took['peak_cores']:.2f} (main {took['peak_threads'].get('main', 0):.2f})"
        for key, spread in use["metrics"].get(name, {"histograms": {}})["histograms"].items():
            if short := next((short for part, short in _BRIEF.items() if part in key), None):
                text += f", {short} mean {spread['mean'] * 1000:.1f} p95≤{spread['p95'] * 1000:.0f}"
        lines.append(text)
    return "\n".join(lines)


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
        ports, metrics = free_ports(), _free_row(len(STAGES) + 1 + int(setting("GATEWAYS", "2")))
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


def facts(model: str, shared: bool) -> dict[str, str]:
    """What a reader of the table must know."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    names = ("CSM_BACKBONE_RUNNER", "CSM_BACKBONE_SLOTS", "CSM_CODEC_DEVICE", "CSM_CODEC_PRECISION", "CSM_WATERMARK_DEVICE")
    return {
        "address": "the whole chain, by its gateway on loopback",
        "machine": f"{gpu}, {os.cpu_count()} processors, torch {torch.__version__}, Python {sys.version.split()[0]}",
        "bundle": Path(model).name if "/" not in model else "CSM-1B's shapes, random weights",
        "services": ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
        + f", {setting('GATEWAYS', '2')} gateways, " + ("MPS" if shared else "no MPS"),
        "points": setting("POINTS", DEFAULT_POINTS) + " (streams:seconds)",
    }


def _free_row(count: int) -> int:
    """The first of `count` free ports in a row."""
    import socket

    for first in range(19464, 29464, count):
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in range(first, first + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise StartError("no free ports")


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
