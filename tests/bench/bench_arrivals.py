"""How soon a busy backbone takes in a new call: its servicer and scheduler over a null device, many streams running.

    python tests/bench/bench_arrivals.py --streams 300 --rate 30 --duration 12
    python tests/bench/bench_arrivals.py --streams 1000 --rate 20 --frame-ms 21 --generator tables  # is the device waited for?

One process serves; this one keeps `--streams` generations running and opens `--rate` more a second, whose time to
`started` it measures. Steps take `--frame-ms`, and what a step really took beyond that is what the host cost it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import grpc
from bench_gateway import free_ports, processor_s
from chain_use import cpu_s
from csm.backbone.v1 import backbone_pb2, backbone_pb2_grpc
from csm_client.readiness import wait_ready
from google.protobuf.duration_pb2 import Duration

from gateway.cli.bench.stats import Spread


def request(frames: int, number: int) -> backbone_pb2.GenerateRequest:
    ids = [128000, *(1000 + number % 1000 + n for n in range(40)), 128001]
    policy = backbone_pb2.ChunkPolicy(ramp_frames=[24], held_back_frames=4, listener_buffer=Duration(nanos=200_000_000))
    return backbone_pb2.GenerateRequest(
        prompt=[backbone_pb2.PromptPart(text=backbone_pb2.TextPart(ids=ids))], max_frames=frames, chunk_policy=policy
    )


async def measure(args: argparse.Namespace) -> None:
    listen = f"127.0.0.1:{free_ports(1)[0]}"
    script = __file__.replace("bench_arrivals", "bench_gateway")
    argv = (
        script,
        "--stage",
        "backbone",
        "--listen",
        listen,
        "--pass-ms",
        str(args.frame_ms),
        "--generator",
        args.generator,
    )
    server = await asyncio.create_subprocess_exec(sys.executable, *argv)
    try:
        await wait_ready(listen, 90)
        async with grpc.aio.insecure_channel(listen) as channel:
            for streams in args.streams:
                await load(backbone_pb2_grpc.BackboneServiceStub(channel), args, streams, server.pid)
    finally:
        server.terminate()
        await server.wait()


async def load(
    stub: backbone_pb2_grpc.BackboneServiceAsyncStub, args: argparse.Namespace, streams: int, pid: int
) -> None:
    started_s: list[float] = []
    frames = messages = 0

    async def generate(number: int, length: int, *, timed: bool) -> None:
        nonlocal frames, messages
        began_s = time.perf_counter()
        async for response in stub.Generate(request(length, number), timeout=120):
            if response.HasField("started") and timed:
                started_s.append(time.perf_counter() - began_s)
            messages += 1
            frames += len(response.chunk.frames)

    async def keep_running(number: int) -> None:
        await asyncio.sleep(2.0 * number / streams)
        while True:
            await generate(number, 250, timed=False)

    running = [asyncio.ensure_future(keep_running(number)) for number in range(streams)]
    await asyncio.sleep(3.0)
    frames, messages, spent_s, began_s, threads_s = 0, 0, processor_s(pid), time.perf_counter(), cpu_s(pid)
    arrivals = []
    for number in range(round(args.duration * args.rate)):
        await asyncio.sleep(max(0.0, began_s + number / args.rate - time.perf_counter()))
        arrivals.append(asyncio.ensure_future(generate(number, 5, timed=True)))
    await asyncio.gather(*arrivals)
    wall_s, spent_s = time.perf_counter() - began_s, processor_s(pid) - spent_s
    shares = sorted(((used - threads_s.get(name, 0.0)) / wall_s for name, used in cpu_s(pid).items()), reverse=True)[1:]
    # New calls have few frames: their slots count as one stream in all.
    step_ms = 1000 * wall_s * streams / frames
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    if (spread := Spread.of(1000 * each for each in started_s)) is None:
        sys.exit("no call was taken in")
    audio_s = 0.08 * frames
    print(
        f"{streams} streams and {args.rate:g} new calls a second: {audio_s / wall_s:.0f} s of audio a second, "
        f"{messages / wall_s:.0f} messages a second\n"
        f"to started: p50 {spread.p50:.0f}, p95 {spread.p95:.0f}, most {spread.most:.0f} ms\n"
        f"backbone: {1000 * spent_s / audio_s:.2f} ms of processor time per second of audio ({spent_s / wall_s:.0%}), "
        f"its busiest threads {', '.join(f'{share:.0%}' for share in shares[:3])}\n"
        f"a step took {step_ms:.1f} ms, {'the GPU and the host' if args.generator == 'cuda' else f'the device {args.frame_ms:.1f} of it'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[300])
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--duration", type=float, default=12.0)
    parser.add_argument("--frame-ms", type=float, default=53.0)
    parser.add_argument(
        "--generator",
        choices=["none", "tables", "cuda"],
        default="none",
        help="the runner for CUDA devices over a null device, or on a GPU with random weights",
    )
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
