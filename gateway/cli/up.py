"""The whole chain on this machine: a process for each service, and a collector for their traces."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from gateway.cli import state
from gateway.cli.commands.voices import NOISE
from gateway.cli.ports import HOST
from gateway.cli.supervisor import Child, Supervisor
from gateway.cli.trace.collector import Collector
from gateway.cli.trace.spans import TraceStore
from gateway.stage_names import STAGES
from models.bundle import Bundle, load_bundle
from services.runtime.extras import missing_line
from services.runtime.settings import StartError

_ELSEWHERE = (
    "CSM_TLS_CERT_FILE",
    "CSM_TLS_KEY_FILE",
    "CSM_TLS_CLIENT_CA_FILE",
    "CSM_HEALTH_LISTEN",
    "CSM_TOKENS_FILE",
    "CSM_UPSTREAM_CA_FILE",
    "CSM_UPSTREAM_CERT_FILE",
    "CSM_UPSTREAM_KEY_FILE",
    "CSM_HTTP_TLS_CERT_FILE",
    "CSM_HTTP_TLS_KEY_FILE",
    "CSM_HTTP_GATEWAY_CA_FILE",
    "CSM_HTTP_GATEWAY_CERT_FILE",
    "CSM_HTTP_GATEWAY_KEY_FILE",
)


@dataclass(frozen=True)
class Plan:
    """What to run. ports: for the gateway, each stage and, where there is to be one, the HTTP process (`http`).

    folder: for logs, traces and the note to other terminals.
    """

    model: str
    ports: Mapping[str, int]
    folder: Path
    ready_s: float = 900.0  # large weights may have to be fetched first; a service that fails is noticed at once

    def address(self, name: str) -> str:
        return f"{HOST}:{self.ports[name]}"


@dataclass(frozen=True)
class Deployment:
    """The chain, ready. traces: None when spans go where OTEL_EXPORTER_OTLP_ENDPOINT says."""

    address: str
    supervisor: Supervisor
    traces: TraceStore | None


@asynccontextmanager
async def deployment(plan: Plan, console: Console) -> AsyncIterator[Deployment]:
    """Start everything, tell `console` of each service that is ready; stop everything at the end.

    Raises: ChildDied when a service cannot start, Unavailable when one takes longer than plan.ready_s.
    """
    async with AsyncExitStack() as stack:
        env, store = _common_env(plan), None
        if not any(os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT") for signal in ("", "TRACES_")):
            store = TraceStore(plan.folder / "traces")
            # Entered before the services, so that it still listens to their last words.
            collector = await stack.enter_async_context(Collector(store))
            env["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.endpoint
        children = [_child(plan, name, env) for name in (*STAGES, "gateway", "http") if name in plan.ports]
        supervisor = await stack.enter_async_context(Supervisor(children, plan.folder / "logs"))
        await supervisor.wait_ready(
            plan.ready_s,
            lambda child, took_s: console.print(f"  {child.name:<10} {child.address:<16} ready after {took_s:.1f} s"),
            lambda names, waited_s: console.print(
                f"  still waiting for {', '.join(names)} after {waited_s:.0f} s; logs are in {plan.folder / 'logs'}"
            ),
        )
        yield Deployment(plan.address("gateway"), supervisor, store)


async def up(plan: Plan, console: Console) -> int:
    """Run until Ctrl-C or SIGTERM (0). Raises: as `deployment`, and ChildDied when a service ends."""
    bundle = load(plan.model)
    console.print(f"Starting five services and their page. {introduction(bundle)}")
    try:
        async with deployment(plan, console) as running:
            traces = str(running.traces.folder.resolve()) if running.traces else None
            note = state.Running(running.address, os.getpid(), traces)
            state.register(note, plan.folder)
            try:
                console.print(_invitation(plan, bundle))
                await running.supervisor.wait_died()
            finally:
                state.unregister(note, plan.folder)
                console.print("Stopping.")
    except asyncio.CancelledError:
        console.print("All have stopped.")
    return 0


def load(model: str) -> Bundle:
    """The bundle to serve. Raises: ModelError, StartError when the packages that serve it are not all installed."""
    if line := missing_line("all"):
        raise StartError(line)
    return load_bundle(model)


def introduction(bundle: Bundle) -> str:
    """Which bundle is served, and what it is."""
    return f"Bundle `{bundle.id}`:\n{bundle.description}"


def _invitation(plan: Plan, bundle: Bundle) -> str:
    noise = "" if bundle.trained else f"\n{NOISE}"
    # Commands find the first `csm up` by themselves; this one is another.
    where = "" if plan.folder == state.state_dir() else f" --address {plan.address('gateway')}"
    return (
        f"page and OpenAI's speech API: http://{plan.address('http')}\n"
        f'ready: csm say "Hello there." -o hello.wav --trace{where}{noise}\n'
        f"Logs are in {plan.folder / 'logs'}. Ctrl-C stops all."
    )


def _common_env(plan: Plan) -> dict[str, str]:
    # What the caller's environment says wins, but for what this command itself decides.
    return {
        "CSM_LOG_FORMAT": os.environ.get("CSM_LOG_FORMAT", "text"),
        "CSM_GRACE_S": os.environ.get("CSM_GRACE_S", "5"),
        "CSM_MODEL": plan.model,
        **{f"CSM_{name.upper()}_ADDRESS": plan.address(name) for name in STAGES},
        # gRPC's own word for it: spans go to our collector directly, while model files may come through a proxy.
        "no_grpc_proxy": ",".join(filter(None, (_no_proxy(), HOST, "localhost"))),
        # Nothing leaves this machine: TLS and tokens that the environment names are for calls elsewhere.
        **dict.fromkeys(_ELSEWHERE, ""),
    }


def _no_proxy() -> str:
    return os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy") or ""


def _child(plan: Plan, name: str, env: Mapping[str, str]) -> Child:
    module = {"gateway": "gateway", "http": "gateway.http"}.get(name, f"services.{name}")
    argv = (sys.executable, "-m", module)
    own = {"CSM_LISTEN": plan.address(name)}
    if name == "http":
        own = {"CSM_HTTP_LISTEN": plan.address(name), "CSM_HTTP_GATEWAY_ADDRESS": plan.address("gateway")}
    if metrics := os.environ.get("CSM_METRICS_LISTEN"):
        own["CSM_METRICS_LISTEN"] = _next_port(metrics, ("gateway", *STAGES, "http").index(name))
    return Child(name, argv, plan.address(name), {**env, **own}, speaks_http=name == "http")


def _next_port(listen: str, index: int) -> str:
    """One setting for several processes on one machine: consecutive ports, as with CSM_LISTEN; 0 is any."""
    host, _, port = listen.rpartition(":")
    return f"{host}:{int(port) + index}" if port.isdigit() and int(port) else listen
