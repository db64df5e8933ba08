"""Where conversations' generations go: 16 conversations at once over two backbones, with the bundled model.

    PYTHONPATH=.:protos:gateway/client python tests/bench/bench_affinity.py --turns 5

The gateway runs in this process, so that each choice of a replica is seen with the loads that it was made at. A
generation is at home where its conversation's last one was. `bound`: before the choice the busiest replica had less
than 1.25 times the mean load; `ratio`: less than 1.25 times the least busy one's.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from csm.speech.v1 import speech_pb2
from csm_client import SpeechClient

from gateway.cli.ports import free_ports
from gateway.cli.supervisor import Child, Supervisor
from gateway.config import GatewaySettings
from gateway.public import open_public
from gateway.replicas import LOAD_BOUND, ReplicaSet
from gateway.stages import Stages
from models.bundle import load_bundle
from services.runtime.server import StageServer
from services.runtime.settings import read

WORDS = "paper river garden window yellow morning seven letter table winter question answer".split()


@dataclass(frozen=True)
class Choice:
    """loads: of all replicas, before the call."""

    loads: tuple[int, ...]
    at_home: bool

    @property
    def in_bound(self) -> bool:
        return not sum(self.loads) or max(self.loads) < LOAD_BOUND * sum(self.loads) / len(self.loads)

    @property
    def in_ratio(self) -> bool:
        return not sum(self.loads) or max(self.loads) < LOAD_BOUND * min(self.loads)


def observe(replicas: ReplicaSet) -> list[Choice]:
    """Every choice for a key that had one before."""
    found: list[Choice] = []
    homes: dict[str, str] = {}
    pick = replicas.pick

    def picked(key=None, avoid=()):
        loads = tuple(replica.load for replica in replicas.replicas)
        replica = pick(key, avoid)
        if key is not None and replica is not None:
            if key in homes:
                found.append(Choice(loads, homes[key] == replica.address))
            homes[key] = replica.address
        return replica

    replicas.pick = picked  # type: ignore[method-assign]
    return found


async def converse(client: SpeechClient, number: int, turns: int, pause_s: float) -> int:
    """Turns that ended by themselves."""
    draw, ended = random.Random(number), 0
    async with client.converse(speaker=number % 2, seed=number) as talk:
        for _ in range(turns):
            await asyncio.sleep(draw.uniform(0, pause_s))  # the other party speaks
            text = " ".join(draw.choices(WORDS, k=draw.randint(4, 12)))
            await talk.say(f"{text.capitalize()}. And {draw.choice(WORDS)} too.")
            async for event in talk:
                if isinstance(event, speech_pb2.TurnFinished):
                    ended += event.finish_reason == 1
                    break
    return ended


async def measure(conversations: int, turns: int, pause_s: float) -> tuple[list[Choice], int]:
    ports = [free_ports() for _ in range(2)]
    address = {name: f"127.0.0.1:{port}" for name, port in ports[0].items()}
    address["backbone2"] = f"127.0.0.1:{ports[1]['backbone']}"
    env = {"CSM_MODEL": "embedded", "CSM_GRACE_S": "2"} | dict.fromkeys(
        ("CSM_BACKBONE_SLOTS", "CSM_CODEC_SLOTS", "CSM_WATERMARK_STREAMS"), str(conversations)
    )
    children = [
        Child(name, (sys.executable, "-m", f"services.{module}"), address[name], {**env, "CSM_LISTEN": address[name]})
        for name, module in {n: n.removesuffix("2") for n in address if n != "gateway"}.items()
    ]
    targets = {name: address[name] for name in ("tokenizer", "codec", "watermark")}
    targets["backbone"] = f"ipv4:{address['backbone']},{address['backbone2']}"
    bundle = load_bundle("embedded")
    async with AsyncExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        supervisor = await stack.enter_async_context(Supervisor(children, logs))
        await supervisor.wait_ready(180, lambda child, took_s: None)
        settings = read(GatewaySettings, environ={}, listen="127.0.0.1:0", voices_url=str(logs), **targets)
        stages = await stack.enter_async_context(Stages(settings, bundle))
        server = StageServer(await stack.enter_async_context(open_public(settings, bundle, stages)), settings)
        listen = await server.start()
        stack.push_async_callback(server.stop, 1)
        await stages.check()
        choices = observe(stages.backbone)
        async with SpeechClient(listen) as client:
            ended = await asyncio.gather(*(converse(client, n, turns, pause_s) for n in range(conversations)))
        return choices, sum(ended)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conversations", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between turns, at most")
    args = parser.parse_args()
    choices, ended = asyncio.run(measure(args.conversations, args.turns, args.pause))
    print(f"{args.conversations} conversations, {ended} of {args.conversations * args.turns} turns ended by themselves")
    for name, some in (
        ("all", choices),
        ("bound", [choice for choice in choices if choice.in_bound]),
        ("ratio", [choice for choice in choices if choice.in_ratio]),
    ):
        home = sum(choice.at_home for choice in some)
        print(f"  {name}: {home} of {len(some)} at home, {100 * home / max(1, len(some)):.1f} %")
    moved = sorted(choice.loads for choice in choices if not choice.at_home)
    print(f"  loads at which one moved: {moved}")


if __name__ == "__main__":
    main()
