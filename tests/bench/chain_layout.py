"""Which processes a run of bench_chain.py starts, where each listens, and which of them a gateway calls."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from chain_setup import encodes, setting

from gateway.cli.supervisor import Child
from gateway.stage_names import STAGES

# Where a stage's first process has its GPU, counted among those there are; its others go on from there, in turn.
_ON_GPU = ("backbone", "codec", "watermark")
ONE = "one-"  # how gateways are named that call one backbone alone


@dataclass(frozen=True)
class Process:
    """name: `codec`, `codec-2`, …; gpu: the id of the one it is to see; None: as its environment says."""

    name: str
    stage: str
    address: str
    metrics: str
    gpu: str | None = None


@dataclass(frozen=True)
class Counts:
    """Processes of each stage. one: stages of which the gateways of the first half of a comparison call one alone."""

    of: Mapping[str, int]
    one: frozenset[str] = frozenset()

    @classmethod
    def read(cls) -> Counts:
        """REPLICAS, CODECS, WATERMARKS, GATEWAYS and COMPARE."""
        compare = setting("COMPARE")
        replicas = setting("REPLICAS") or (1 if compare == "0" else 2)
        beside = replicas if compare == "all" else 1
        of = {
            "tokenizer": 1, "backbone": replicas, "codec": setting("CODECS") or beside,
            "watermark": setting("WATERMARKS") or beside, "gateway": setting("GATEWAYS") or 2 * replicas,
        }  # fmt: skip
        return cls(of, frozenset({"0": (), "1": ("backbone",), "all": _ON_GPU}[compare]))

    def slots(self, stage: str, each: int) -> int:
        """Streams that one process of `stage` must have room for, so that all backbones' `each` fit in."""
        return math.ceil(each * self.of["backbone"] / self.of[stage])


@dataclass(frozen=True)
class Layout:
    """All processes, in the order to start them."""

    processes: Sequence[Process]
    counts: Counts

    def named(self, stage: str) -> list[Process]:
        return [process for process in self.processes if process.stage == stage]

    def gateways(self, one: bool = False) -> str:
        """What callers are to call: every gateway, those that call one backbone or those that call all."""
        return _target([p for p in self.named("gateway") if p.name.startswith(ONE) == one])

    def children(self, env: Mapping[str, str]) -> list[Child]:
        """env: for each of them, beside its own."""
        return [self._child(process, env) for process in self.processes]

    def _child(self, process: Process, env: Mapping[str, str]) -> Child:
        own = dict(env) | {"CSM_LISTEN": process.address, "CSM_METRICS_LISTEN": process.metrics}
        if code := setting("CODE"):
            paths = [str(code / part) for part in ("", "protos", "gateway/client")]
            own |= {"PYTHONPATH": os.pathsep.join([*paths, *sys.path[1:]]), "PYTHONSAFEPATH": "1"}
        if process.gpu is not None:
            own |= {"CUDA_VISIBLE_DEVICES": process.gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if setting("MPS") == setting("PRIORITY") == "1" and process.stage in ("codec", "watermark"):
            own["CUDA_MPS_CLIENT_PRIORITY"] = "1"  # below normal
        module = f"services.{process.stage}"
        if process.stage == "gateway":
            module = "gateway"
            for stage in STAGES:
                alone = process.name.startswith(ONE) and stage in self.counts.one
                own[f"CSM_{stage.upper()}_ADDRESS"] = _target(self.named(stage)[: 1 if alone else None])
        command: tuple[str, ...] = (sys.executable, "-m", module)
        if cpus := setting("CPUS"):
            command = ("taskset", "--cpu-list", ",".join(map(str, sorted(cpus))), *command)
        return Child(process.name, command, process.address, own)


def layout(counts: Counts, gpus: Sequence[str], first_gpu: Mapping[str, int]) -> Layout:
    """gpus: ids of those to spread over; none: nothing is said of them. first_gpu: stage → index in gpus."""
    stages = [stage for stage in (*STAGES, "gateway") for _ in range(counts.of[stage])]
    names = []
    for stage in stages:
        number = 1 + sum(name.partition("-")[0] == stage for name in names)
        names.append(stage if number == 1 else f"{stage}-{number}")
    if counts.one:
        more = [ONE + name for name, stage in zip(names, stages, strict=True) if stage == "gateway"]
        names, stages = names + more, stages + ["gateway"] * len(more)
    ports = iter(free_ports(2 * len(names)))
    processes = []
    for name, stage in zip(names, stages, strict=True):
        gpu = None
        if gpus and (stage in _ON_GPU or (stage == "tokenizer" and encodes())):
            index = sum(process.stage == stage for process in processes)
            gpu = gpus[(first_gpu.get(stage, 0) + index) % len(gpus)]
        processes.append(Process(name, stage, f"127.0.0.1:{next(ports)}", f"127.0.0.1:{next(ports)}", gpu))
    return Layout(processes, counts)


def read_layout() -> Layout:
    """By the environment: see bench_chain.py."""
    counts = Counts.read()
    gpus = visible_gpus() if setting("DEVICE").startswith("cuda") else []
    away = 0 if setting("COMPARE") == "all" else max(0, len(gpus) - 1)
    said = setting("WATERMARK_GPU")
    first = {"codec": setting("CODEC_GPU"), "watermark": away if said is None else said}
    return layout(counts, gpus, first)


def visible_gpus() -> list[str]:
    """Ids that CUDA_VISIBLE_DEVICES takes, of the GPUs that we may use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [part for part in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if part]
    try:
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(index) for index, line in enumerate(line for line in told.splitlines() if line.startswith("GPU "))]


def free_ports(count: int) -> list[int]:
    """Ports that are free."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _target(processes: Sequence[Process]) -> str:
    """What gRPC takes as one name for all of them."""
    addresses = [process.address for process in processes]
    return addresses[0] if len(addresses) == 1 else "ipv4:" + ",".join(addresses)
