"""The gateway in front of four fake stages, all in this process, each a real server on a loopback port."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from csm.speech.v1 import speech_pb2, speech_pb2_grpc
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.config import GatewaySettings
from gateway.public import open_public
from gateway.stages import Stages
from models.bundle import load_bundle
from models.mimi import load_mimi
from services.runtime.server import Stage, StageServer
from services.runtime.settings import ServerSettings, read
from support import tiny_mimi
from support.channels import open_channel
from support.fake_stages import StageProbe, servicers
from support.watermark_calls import write_bundle
from support.watermark_pair import TINY, write_pair


class FakeChain:
    """`speech` is a stub of the gateway; `probe` gives orders to the stages behind it.

    stage_settings: of all four. credentials: of our own channel to the gateway. metadata: of the call that waits for it.
    """

    def __init__(self, probe: StageProbe, voices_url: str):
        self.probe = probe
        self.stage_settings: dict = {}
        self.gateway_settings = {"listen": "127.0.0.1:0", "ramp_frames": "1,1,2,4,8", "voices_url": voices_url}
        self.credentials = self.metadata = None
        self.servers: dict[str, StageServer] = {}
        self.addresses: dict[str, str] = {}

    async def start_stage(self, name: str) -> None:
        """Start one stage, on its old port when it had one."""
        servicer, add = servicers(self.probe)[name]
        settings = read(
            ServerSettings, environ={}, listen=self.addresses.get(name, "127.0.0.1:0"), **self.stage_settings
        )
        server = StageServer(
            Stage(f"csm.{name}.v1.{name.capitalize()}Service", lambda grpc_server: add(servicer, grpc_server)), settings
        )
        self.addresses[name] = await server.start()
        self.servers[name] = server

    async def start_gateway(self, stack: AsyncExitStack, **overrides) -> None:
        settings = read(GatewaySettings, environ={}, **{**self.gateway_settings, **self.addresses, **overrides})
        bundle = load_bundle("embedded")
        self.stages = await stack.enter_async_context(Stages(settings, bundle))
        gateway = StageServer(await stack.enter_async_context(open_public(settings, bundle, self.stages)), settings)
        self.servers["gateway"] = gateway
        self.addresses["gateway"] = await gateway.start()
        await self.stages.check()
        channel = open_channel(self.addresses["gateway"], credentials=self.credentials)
        stack.push_async_callback(channel.close)
        self.channel = channel
        self.speech = speech_pb2_grpc.SpeechServiceStub(channel)
        if self.stages.info is not None:
            ask = speech_pb2.ListVoicesRequest()
            await self.speech.ListVoices(ask, timeout=10, wait_for_ready=True, metadata=self.metadata)


@pytest.fixture
async def probe():
    return StageProbe(load_bundle("embedded"))


@pytest.fixture
async def open_chain(probe, tmp_path_factory):
    """Call it to start the chain; keyword arguments are settings of the gateway, but for the chain's own."""
    async with AsyncExitStack() as stack:
        chain = FakeChain(probe, str(tmp_path_factory.mktemp("voices")))

        async def stop_all():
            await asyncio.gather(*(server.stop(0) for server in chain.servers.values()))

        stack.push_async_callback(stop_all)

        async def start(*, stage_settings=(), credentials=None, metadata=None, **overrides) -> FakeChain:
            chain.stage_settings, chain.credentials, chain.metadata = dict(stage_settings), credentials, metadata
            for name in ("tokenizer", "backbone", "codec", "watermark"):
                await chain.start_stage(name)
            await chain.start_gateway(stack, **overrides)
            return chain

        yield start


_exporter = InMemorySpanExporter()


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory):
    """A bundle of which there is only a tiny Mimi."""
    return tiny_mimi.write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def mimi(bundle_folder):
    """Its model."""
    return load_mimi(load_bundle(str(bundle_folder)))


@pytest.fixture(scope="module")
def pair_folder(tmp_path_factory):
    """A bundle whose tiny watermark nets work: what one writes the other finds."""
    folder = tmp_path_factory.mktemp("bundle")
    return write_bundle(folder, "working-pair", lambda watermark: write_pair(watermark, TINY))


@pytest.fixture
def spans():
    """Spans finished since the test began."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(TracerProvider())
    provider = trace.get_tracer_provider()
    processor = SimpleSpanProcessor(_exporter)
    provider.add_span_processor(processor)
    _exporter.clear()
    yield _exporter.get_finished_spans
    provider._active_span_processor._span_processors = tuple(
        p for p in provider._active_span_processor._span_processors if p is not processor
    )
