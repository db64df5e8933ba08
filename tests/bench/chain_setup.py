"""What a run of bench_chain.py starts from: its settings, those of the services, a bundle, ports."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chain_points import MOST_S, MOST_STREAMS, Wish

from gateway.cli.bench import prompts
from models.bundle import known_bundles, load_bundle
from models.files import PartError
from services.runtime.settings import StartError

if TYPE_CHECKING:
    from chain_layout import Counts, Layout

DEFAULT_POINTS = "1:6 16:5 64:5 256:6:4 512:8:6 1000:12:10"
_PROMPT_ROWS = 134  # of the longest sentence
_FRAME_RATE_HZ = 12.5
_HERE = Path(__file__).parent


_Reader = tuple[Callable[[str], Any], str]  # a text → its value, or a ValueError; what is allowed


def _number(kind: type, least: float, most: float) -> _Reader:
    def read(text: str) -> float:
        if not least <= (value := kind(text)) <= most:  # NaN fails too
            raise ValueError
        return value

    return read, f"a {'whole ' if kind is int else ''}number from {least} to {most}"


def _like(pattern: str, allowed: str) -> _Reader:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return read, allowed


def _points(text: str) -> tuple[Wish, ...]:
    if not (wishes := tuple(Wish.read(item) for item in text.split())):
        raise ValueError
    return wishes


def _bundle(text: str) -> str:
    try:
        load_bundle(text)
    except PartError as error:
        raise ValueError from error
    return text


def _folder(text: str) -> Path:
    if (path := Path(text)).exists() and not path.is_dir():
        raise ValueError
    return path


def _checkout(text: str) -> Path:
    if not (path := Path(text) / "services/__init__.py").is_file():
        raise ValueError
    return path.parents[1]


def _cpus(text: str) -> frozenset[int]:
    """As taskset has them; the callers need some that are left."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= (some := set(range(int(first), int(last or first) + 1)))
        if not some:
            raise ValueError
    if not found < set(range(os.cpu_count() or 1)):
        raise ValueError
    return frozenset(found)


_POINTS = (
    _points,
    (
        f"streams:seconds[:ramp] or rate/s:seconds, once or more: 1 to {MOST_STREAMS} streams, over 0 to {MOST_S} seconds, a ramp no longer than they"
    ),
)
_COUNT, _GPU = _number(int, 1, 64), _number(int, 0, 63)
_SWITCH, _COMPARE = _like("[01]", "0 or 1"), _like("0|1|all", "0, 1 or all")
_DEVICE = _like("cuda|cpu", "cuda or cpu")
_EVERY = (lambda text: int(_like("1|3|5|15", "")[0](text))), "1, 3, 5 or 15"  # the alerts' tests take each 15 s of it
_FOLDER = _folder, "a folder, one that is there or that can be made"
_CPUS = _cpus, "processors of this machine, as 0-15 or 0,2,4-7, not all of them"
# Those without a default stand for something else where they are read.
_SETTINGS: dict[str, tuple[str | None, _Reader]] = {
    "POINTS": (DEFAULT_POINTS, _POINTS), "POINTS_ALL": (None, _POINTS),
    "LISTEN": ("0", _SWITCH), "AUDIO_S": ("20", _number(float, 0.08, 600)),
    "TURNS": ("0", _number(int, 0, 100)), "PAUSE_S": ("1", _number(float, 0, 60)),
    "PROMPT_S": ("0", _number(float, 0, 30)), "SHARED_PROMPT": ("0", _SWITCH),
    "COMPARE": ("0", _COMPARE), "SEARCH": (None, _SWITCH), "MPS": ("0", _SWITCH), "PRIORITY": ("0", _SWITCH),
    "REPLICAS": (None, _COUNT), "CODECS": (None, _COUNT), "WATERMARKS": (None, _COUNT), "GATEWAYS": (None, _COUNT),
    "CODEC_GPU": ("0", _GPU), "WATERMARK_GPU": (None, _GPU),
    "LIMIT_S": ("240", _number(int, 1, 86400)), "READY_S": ("90", _number(float, 1, 3600)),
    "BEGAN_S": (None, _number(int, 0, 10**12)),  # of bench_chain.sh
    "BUNDLE": (None, (_bundle, f"{', '.join(known_bundles())} or a folder with a bundle.toml")), "SHAPES_FOLDER": (None, _FOLDER),
    "DEVICE": ("cuda", _DEVICE), "WATERMARK_DEVICE": (None, _DEVICE), "SLOTS": ("1024", _number(int, 1, 4096)),
    "TRACED": ("0.2", _number(float, 0, 1)), "CODE": (None, (_checkout, "a checkout")),
    "RECORD": (None, _FOLDER), "RECORD_EVERY_S": ("5", _EVERY), "OUT": ("out/chain", _FOLDER),
    "CPUS": (None, _CPUS),
}  # fmt: skip


def setting(name: str) -> Any:
    """A setting's value by the environment, else its default, if it has one, else None. Raises: SystemExit."""
    default, (read, allowed) = _SETTINGS[name]
    text = os.environ.get(name) or default
    if text is None:
        return None
    try:
        return read(text)
    except (ValueError, OSError):
        raise SystemExit(f"{name}={text!r}: must be {allowed}") from None


def check_settings() -> None:
    """Raises: SystemExit, which names the first that cannot be used, and what is allowed."""
    for name in _SETTINGS:
        setting(name)
    if setting("COMPARE") != "0" and setting("REPLICAS") == 1:
        raise SystemExit("REPLICAS='1': must be 2 or more with COMPARE")
    if setting("TURNS") and setting("PROMPT_S"):
        raise SystemExit(f"TURNS={os.environ['TURNS']!r}: cannot be used with PROMPT_S")
    for name in ("POINTS", "POINTS_ALL"):
        if setting("TURNS") and any(wish.rate_hz is not None for wish in setting(name) or ()):
            raise SystemExit(f"TURNS={os.environ['TURNS']!r}: cannot be used with a rate among {name}")
    if setting("COMPARE") != "0" and setting("RECORD"):
        raise SystemExit(
            f"RECORD={os.environ['RECORD']!r}: cannot be used with COMPARE, whose gateways are not all in use"
        )


def kind() -> dict[str, Any]:
    """What each caller asks for, as fields of a Plan."""
    return {
        "turns": setting("TURNS"), "pause_s": setting("PAUSE_S"),
        "prompt_s": setting("PROMPT_S"), "shares_prompt": setting("SHARED_PROMPT") == "1",
    }  # fmt: skip


def callers_cpus() -> set[int]:
    """Processors of the callers: those that we may use and the services do not. Raises: SystemExit."""
    if not (left := os.sched_getaffinity(0) - (setting("CPUS") or set())):
        raise SystemExit(f"CPUS={os.environ['CPUS']!r}: leaves the callers none of the processors that we may use")
    return left


def encodes() -> bool:
    """Whether the tokenizer has audio to encode, which is work for the device."""
    return setting("PROMPT_S") > 0


def call_s() -> float:
    """The longest that a caller hears in one call, in seconds, pauses between turns included."""
    turns = setting("TURNS") or 1
    return turns * setting("AUDIO_S") + (turns - 1) * setting("PAUSE_S")


def out_folder(*names: str) -> Path:
    """OUT, made where it is missing, without the files `names` of an earlier run. Raises: SystemExit."""
    out = setting("OUT")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in names:
            (out / name).unlink(missing_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError("it cannot be written to")
    except OSError as why:
        raise SystemExit(f"OUT={str(out)!r}: must be a folder to write files to: {why}") from None
    return out


async def make_bundle(folder: Path, device: str) -> tuple[str, asyncio.Task[None]]:
    """CSM-1B's shapes with random weights: where they are, and what ends when the generator is there too.

    The generator takes longest, on the device: everything but the backbones can start meanwhile.
    """
    folder = setting("SHAPES_FOLDER") or folder

    async def make(*part: str) -> None:
        program = (sys.executable, _HERE / "bundle_csm_1b.py")
        maker = await asyncio.create_subprocess_exec(*program, folder, *part, start_new_session=True)  # Ctrl-C is ours
        try:
            if await maker.wait():
                raise StartError(f"the bundle's {part[0]} could not be made")
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended, unless we are to
                maker.kill()
            await maker.wait()  # nothing is written any more

    if (folder / "generator/model.safetensors").is_file():
        return str(folder), asyncio.create_task(asyncio.sleep(0))
    generator = asyncio.create_task(make("generator", "--device", device))
    await asyncio.gather(*(make(part) for part in ("tokenizer", "watermark", "mimi")))
    return str(folder), generator


def configure(model: str, counts: Counts) -> None:
    """Settings of the services, in our own environment, which theirs begins with."""
    device, slots = setting("DEVICE"), setting("SLOTS")
    on_gpu = device.startswith("cuda")
    rows = (setting("TURNS") or 1) * (_PROMPT_ROWS + math.ceil(setting("AUDIO_S") * _FRAME_RATE_HZ))
    rows += prompts.tokens(setting("PROMPT_S"), _FRAME_RATE_HZ)
    wanted = {
        "CSM_BACKBONE_DEVICE": device, "CSM_CODEC_DEVICE": device,
        "CSM_WATERMARK_DEVICE": setting("WATERMARK_DEVICE") or device,
        "CSM_TOKENIZER_DEVICE": device if encodes() else "cpu",
        "CSM_BACKBONE_RUNNER": "graph" if on_gpu else "eager",
        "CSM_BACKBONE_DTYPE": "bfloat16" if on_gpu else "auto",
        "CSM_BACKBONE_SLOTS": slots, "CSM_BACKBONE_QUEUE": slots,
        # All that the backbones make at once has a place in what comes after them, whichever way it is spread.
        "CSM_CODEC_SLOTS": counts.slots("codec", slots), "CSM_WATERMARK_STREAMS": counts.slots("watermark", slots),
        "CSM_GATEWAY_MAX_STREAMS": 2 * slots * counts.of["backbone"],
        # As many as are needed, not all that fits: codec and watermark live on the same device.
        "CSM_BACKBONE_BLOCKS": max(128, math.ceil(rows / 16) * slots),
        "CSM_BACKBONE_MAX_PREFILL_TOKENS": 512 if on_gpu else 64,
        "CSM_WATERMARK_KEY": secrets.token_hex(5),
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": setting("TRACED"),
    }  # fmt: skip
    if model == "embedded":
        del wanted["CSM_WATERMARK_KEY"]
    for name, value in wanted.items():
        os.environ.setdefault(name, str(value))


@contextlib.asynccontextmanager
async def mps(folder: Path):
    """MPS=1: NVIDIA's daemon that lets kernels of several processes run side by side; for our processes alone.

    Where it cannot be had, MPS becomes 0.
    """
    if setting("MPS") != "1":
        yield
        return
    places = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps-log")}
    for name in ("mps", "mps-log"):
        (folder / name).mkdir()
    # The daemon numbers the GPUs that it sees from 0, so it has to see all, or the ids our processes are given are not its own.
    seen = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | places
    daemon = None
    with contextlib.suppress(OSError):
        command = ("nvidia-cuda-mps-control", "-f")
        daemon = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, env=seen, start_new_session=True
        )
    try:
        if daemon is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(daemon.wait(), 1)  # one that cannot work leaves at once
        if daemon is None or daemon.returncode is not None:
            print("no MPS here: nvidia-cuda-mps-control is missing or has ended; the processes take turns", flush=True)
            os.environ["MPS"] = "0"
        else:
            os.environ |= places
        yield
    finally:
        if daemon is not None and daemon.returncode is None:
            quitting = await asyncio.create_subprocess_exec(
                "nvidia-cuda-mps-control", stdin=asyncio.subprocess.PIPE, env=os.environ | places
            )
            await quitting.communicate(b"quit\n")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(daemon.wait(), 5)
            with contextlib.suppress(ProcessLookupError):
                daemon.kill()


def facts(layout: Layout) -> dict[str, str]:
    """What a reader of the table must know."""
    names = (
        "CSM_BACKBONE_RUNNER",
        "CSM_BACKBONE_SLOTS",
        "CSM_CODEC_SLOTS",
        "CSM_CODEC_PRECISION",
        "CSM_WATERMARK_STREAMS",
        "CSM_WATERMARK_PRECISION",
    )
    bundle = setting("BUNDLE") or "CSM-1B's shapes, random weights"
    return {
        "address": "the whole chain, by its gateways on loopback",
        "machine": f"{', '.join(_gpu_names()) or 'no GPU'}, {len(setting('CPUS') or range(os.cpu_count() or 1))} processors, torch {version('torch')}, "
        f"Python {sys.version.split()[0]}",
        "bundle": bundle if "/" not in bundle else Path(bundle).name,
        "processes": ", ".join(p.name + (f" (GPU {p.gpu})" if p.gpu else "") for p in layout.processes),
        "code": setting("CODE").name if setting("CODE") else "this checkout's",
        "services": ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
        + (
            ", no MPS"
            if setting("MPS") == "0"
            else ", MPS, the backbone first"
            if setting("PRIORITY") == "1"
            else ", MPS"
        ),
        "callers": _kind_text() + (", on processors of their own" if setting("CPUS") else ""),
        "points": f"{os.environ.get('POINTS') or DEFAULT_POINTS} (streams:seconds:ramp or rate/s:seconds)",
    }


def _kind_text() -> str:
    if setting("TURNS"):
        return f"hold conversations of {setting('TURNS')} turns, {setting('PAUSE_S'):g} s between two, each heard out"
    if setting("PROMPT_S"):
        whose = "the same for all" if setting("SHARED_PROMPT") == "1" else "each its own"
        return f"bring a voice prompt of {setting('PROMPT_S'):g} s, {whose}"
    return "hear each utterance out before the next" if setting("LISTEN") == "1" else "take audio as fast as it comes"


@cache
def _gpu_names() -> list[str]:
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return []
    return told.stdout.split("\n")[:-1] if told.returncode == 0 else []
