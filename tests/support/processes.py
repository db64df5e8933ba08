"""The five services as five processes on loopback ports, and a real OTLP receiver that they report to."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

ROOT = Path(__file__).parents[2]
MODULES = {
    "tokenizer": "services.tokenizer",
    "backbone": "services.backbone",
    "codec": "services.codec",
    "watermark": "services.watermark",
    "gateway": "gateway",
}


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps (service name, span) of everything exported to it."""

    def __init__(self):
        self.spans: list[tuple[str, object]] = []

    async def Export(self, request, context):
        for resource in request.resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans.extend((names["service.name"], span) for span in scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


_PORTS = range(15_000, 32_000)  # below those that the kernel gives to clients


def free_ports(count: int) -> list[int]:
    """Free ports. Processes that ask at the same time get different ones."""
    with (Path(tempfile.gettempdir()) / f"csm-test-ports-{os.getuid()}").open("a+") as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)
        taken.seek(0)
        last, found = int(taken.read() or _PORTS.start), []
        for port in (*range(last + 1, _PORTS.stop), *_PORTS):
            with socket.socket() as one:
                one.setsockopt(
                    socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
                )  # as servers do: past connections do not count
                try:
                    one.bind(("127.0.0.1", port))
                except OSError:
                    continue
            found.append(port)
            if len(found) == count:
                break
        taken.truncate(0)
        taken.write(str(found[-1]))
    return found


class Processes:
    """Starts, kills and stops them. `addresses` maps a service's name to host:port.

    settings: variables of all five, beside their own. credentials: what our own health checks need. starts_within_s: the
    longest that all five may take until they are ready.
    """

    def __init__(
        self,
        log_folder: Path,
        settings: Mapping[str, str] = MappingProxyType({}),
        credentials: grpc.ChannelCredentials | None = None,
        starts_within_s: float = 120,
    ):
        self._starts_within_s = starts_within_s
        self.logs, self.settings, self.credentials = log_folder, settings, credentials
        self.receiver = Receiver()
        names = [*MODULES, "otlp"]
        self.addresses = {name: f"127.0.0.1:{port}" for name, port in zip(names, free_ports(6), strict=True)}
        self.running: dict[str, asyncio.subprocess.Process] = {}

    async def __aenter__(self) -> Processes:
        self._otlp = grpc.aio.server()
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self.receiver, self._otlp)
        self._otlp.add_insecure_port(self.addresses["otlp"])
        await self._otlp.start()
        try:
            await asyncio.gather(*(self.start(name) for name in MODULES))
            await asyncio.gather(*(self.ready(name, self._starts_within_s) for name in MODULES))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_) -> None:
        for process in self.running.values():
            if process.returncode is None:
                process.terminate()
        for process in self.running.values():
            try:
                await asyncio.wait_for(process.wait(), 20)
            except TimeoutError:
                process.kill()
                await process.wait()
        await self._otlp.stop(0)

    async def start(self, name: str) -> None:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("CSM_", "OTEL_"))},
            **{f"CSM_{stage.upper()}_ADDRESS": self.addresses[stage] for stage in MODULES if stage != "gateway"},
            "CSM_LISTEN": self.addresses[name],
            "CSM_MODEL": "embedded",
            "CSM_GRACE_S": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{self.addresses['otlp']}",
            "OTEL_EXPORTER_OTLP_INSECURE": "true",
            "OMP_NUM_THREADS": "1",
            **self.settings,
        }
        with (self.logs / f"{name}.log").open("ab") as log:
            self.running[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", MODULES[name], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    async def ready(self, name: str, within_s: float = 120) -> None:
        """Wait until the process says it is ready, by the standard health service."""
        async with asyncio.timeout(within_s):
            while True:
                if self.running[name].returncode is not None:
                    raise AssertionError(f"{name} left:\n{(self.logs / f'{name}.log').read_text()[-3000:]}")
                async with self._channel(name) as channel:
                    try:
                        answer = await health_pb2_grpc.HealthStub(channel).Check(
                            health_pb2.HealthCheckRequest(service="readiness"), timeout=2
                        )
                        if answer.status == health_pb2.HealthCheckResponse.SERVING:
                            return
                    except grpc.aio.AioRpcError:
                        pass
                await asyncio.sleep(0.1)

    def _channel(self, name: str) -> grpc.aio.Channel:
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.addresses[name])
        return grpc.aio.secure_channel(self.addresses[name], self.credentials)

    async def kill(self, name: str) -> None:
        self.running[name].kill()
        await self.running[name].wait()
