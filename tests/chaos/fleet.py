"""A gateway and several replicas of each stage, as processes on this machine, each behind a path that can be cut."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.stage_names import STAGES
from support.processes import MODULES, ROOT, free_ports
from support.tcp_path import TcpPath

# Each replica can take all callers when the other one is gone.
_ROOM = {"CSM_BACKBONE_SLOTS": "16", "CSM_CODEC_SLOTS": "32", "CSM_WATERMARK_STREAMS": "32"}
_NICENESS = 10


class Replica:
    """One process. address: where it listens. path: where the gateway reaches it."""

    def __init__(self, stage: str, number: int, address: str, metrics: str):
        self.stage, self.name = stage, f"{stage}-{number}"
        self.address, self.metrics, self.path = address, metrics, TcpPath()
        self.process: asyncio.subprocess.Process | None = None


class Fleet:
    """An async context manager. `gateway` is the address to call. doubled: stages with two replicas; the others have one."""

    def __init__(self, logs: Path, *, doubled: Collection[str], model: str, resumes: int):
        self._logs, self._model, self._resumes = logs, model, resumes
        counts = {stage: 2 if stage in doubled else 1 for stage in STAGES}
        ports = iter(free_ports(2 * (sum(counts.values()) + 1)))

        def address() -> str:
            return f"127.0.0.1:{next(ports)}"

        self.replicas = {
            stage: [Replica(stage, number, address(), address()) for number in range(count)]
            for stage, count in counts.items()
        }
        self._gateway = Replica("gateway", 0, address(), address())
        self.gateway = self._gateway.address

    async def __aenter__(self) -> Fleet:
        try:
            everyone = [replica for replicas in self.replicas.values() for replica in replicas]
            for replica in everyone:
                await replica.path.start(replica.address)
                await self.start(replica)
            await asyncio.gather(*(self.ready(replica) for replica in everyone))
            await self.start(self._gateway)
            await self.ready(self._gateway)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        everyone = [self._gateway, *(replica for replicas in self.replicas.values() for replica in replicas)]
        for replica in everyone:
            if replica.process is not None and replica.process.returncode is None:
                replica.process.send_signal(signal.SIGCONT)
                replica.process.kill()
        for replica in everyone:
            if replica.process is not None:
                await replica.process.wait()
            if replica is not self._gateway:
                await replica.path.stop()

    async def start(self, replica: Replica) -> None:
        """Start its process."""
        addresses = {
            f"CSM_{stage.upper()}_ADDRESS": "ipv4:" + ",".join(one.path.address for one in replicas)
            for stage, replicas in self.replicas.items()
        }
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("CSM_", "OTEL_"))},
            **(addresses if replica is self._gateway else {}),
            **_ROOM,
            "CSM_GATEWAY_RESUMES": str(self._resumes),
            "CSM_LISTEN": replica.address,
            "CSM_METRICS_LISTEN": replica.metrics,
            "CSM_MODEL": self._model,
            "CSM_DRAIN_S": "1",
            "CSM_GRACE_S": "60",
            "OMP_NUM_THREADS": "1",
        }
        with (self._logs / f"{replica.name}.log").open("ab") as log:
            replica.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", MODULES[replica.stage], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    async def ready(self, replica: Replica, within_s: float = 600) -> None:
        """Wait until its health says SERVING. Raises: RuntimeError when its process ends, TimeoutError."""
        async with asyncio.timeout(within_s):
            while True:
                if replica.process is None or replica.process.returncode is not None:
                    raise RuntimeError(f"{replica.name} ended: see {self._logs / replica.name}.log")
                async with grpc.aio.insecure_channel(replica.address) as channel:
                    try:
                        answer = await health_pb2_grpc.HealthStub(channel).Check(
                            health_pb2.HealthCheckRequest(service="readiness"), timeout=2
                        )
                        if answer.status == health_pb2.HealthCheckResponse.SERVING:
                            return _step_back(replica.process.pid)
                    except grpc.aio.AioRpcError:
                        pass
                await asyncio.sleep(0.2)

    async def busy(self, replica: Replica, within_s: float = 20) -> bool:
        """Wait until it works on a stream; False when it does not."""
        ends = time.monotonic() + within_s
        while time.monotonic() < ends:
            if await self.active(replica):
                return True
            await asyncio.sleep(0.1)
        return False

    async def active(self, replica: Replica) -> int:
        """Slots and streams in use, by its own metrics."""
        found = await self._scrape(replica)
        return int(sum(value for name, value in found if name.endswith("_active")))

    async def resumed(self, outcome: str = "resumed") -> int:
        """Streams that the gateway has opened again since its start, by their outcome."""
        found = await self._scrape(self._gateway)
        return int(sum(value for name, value in found if "resumes_total" in name and f'outcome="{outcome}"' in name))

    async def ejected(self, stage: str) -> int:
        """How often the gateway has found since its start that a replica of `stage` does not answer."""
        found = await self._scrape(self._gateway)
        return int(sum(value for name, value in found if "ejections_total" in name and f'stage="{stage}"' in name))

    async def leaked(self, within_s: float = 15) -> int:
        """Slots that are in use although no caller calls, after they had `within_s` to be freed."""
        ends, count = time.monotonic() + within_s, 1
        everyone = [self._gateway, *(replica for replicas in self.replicas.values() for replica in replicas)]
        while time.monotonic() < ends and (count := sum([await self.active(one) for one in everyone])):
            await asyncio.sleep(0.2)
        return count

    async def _scrape(self, replica: Replica) -> list[tuple[str, float]]:
        """(name and labels, value) of each sample; none while it cannot be reached."""

        def get() -> str:
            with urlopen(f"http://{replica.metrics}/metrics", timeout=2) as page:
                return str(page.read().decode())

        try:
            text = await asyncio.to_thread(get)
        except (URLError, OSError):
            return []
        return [
            (name, float(value)) for name, value in re.findall(r"^(csm_\S+?(?:\{.*\})?) (\S+)$", text, re.MULTILINE)
        ]


def _step_back(pid: int) -> None:
    """Let processes that are about to start go before this one: callers who never pause would leave them no processor."""
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), _NICENESS)
