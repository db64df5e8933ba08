"""What a second of speech costs the gateway: processor time, messages, loop lag; stages that compute nothing.

    python tests/bench/bench_gateway.py --streams 64 --duration 15 --frame-ms 20
    python tests/bench/bench_gateway.py --streams 64 --profile gateway.prof     # then: python -m pstats gateway.prof

Each stage is a process that keeps the contract and paces frames: a stream gets one every `--frame-ms`,
as from a generator whose batch step takes that long. The gateway is `python -m gateway` with its own
defaults; the callers are those of `csm bench`, in processes of their own. Processor time is the
kernel's count for the gateway process alone, so that neighbours on the machine change it little.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
from csm.backbone.v1 import backbone_pb2, backbone_pb2_grpc
from csm.codec.v1 import codec_pb2, codec_pb2_grpc
from csm.common.v1 import common_pb2
from csm.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from csm.watermark.v1 import watermark_pb2, watermark_pb2_grpc
from csm_client.readiness import wait_ready

from gateway.cli.bench import fleet
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.stats import Point, point
from gateway.stage_names import STAGES
from models.bundle import load_bundle
from services.backbone.chunk_sizer import ChunkSizer
from services.runtime.identity import identity
from services.runtime.server import Stage, StageServer
from services.runtime.settings import ServerSettings, read

BUNDLE = "csm-1b"  # its shapes; no weights are read
LOOKAHEAD = 9_000  # samples, the public watermark's
PIECE = 24_000  # samples: the real one marks a second at a time
F32 = common_pb2.AUDIO_ENCODING_PCM_F32LE


class Tokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    async def Tokenize(self, request, context):
        return tokenizer_pb2.TokenizeResponse(
            segments=[tokenizer_pb2.TokenizedSegment(ids=[1, *s.text.encode(), 2]) for s in request.segments]
        )

    async def GetModelInfo(self, request, context):
        return tokenizer_pb2.GetModelInfoResponse(bundle=identity(load_bundle(BUNDLE)))


class Backbone(backbone_pb2_grpc.BackboneServiceServicer):
    def __init__(self, frame_s: float):
        self._frame_s = frame_s
        self._frames = [common_pb2.Frame(codes=[(7 * n) % 2048 for n in range(32)])] * 64

    async def Generate(self, request, context):
        yield backbone_pb2.GenerateResponse(started=backbone_pb2.GenerateStarted(seed=1, prompt_tokens=20))
        policy = request.chunk_policy
        held_back = policy.held_back_frames if policy.HasField("held_back_frames") else None
        chunks = ChunkSizer(tuple(policy.ramp_frames), 0.08, held_back)
        made, due = 0, time.perf_counter()
        while made < request.max_frames:
            count = min(chunks.next_size(made, time.perf_counter()), request.max_frames - made)
            due += count * self._frame_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            chunk = backbone_pb2.FrameChunk(first_frame_index=made, frames=self._frames[:count])
            yield backbone_pb2.GenerateResponse(chunk=chunk)
            made += count
        end = common_pb2.FINISH_REASON_MAX_LENGTH
        yield backbone_pb2.GenerateResponse(finished=backbone_pb2.GenerateFinished(finish_reason=end, frames=made))

    async def GetModelInfo(self, request, context):
        return backbone_pb2.GetModelInfoResponse(
            bundle=identity(load_bundle(BUNDLE)), max_seq_len=2048, max_frames=1125
        )


class Codec(codec_pb2_grpc.CodecServiceServicer):
    _silence = bytes(64 * 1920 * 4)

    async def Decode(self, request_iterator, context):
        frames = 0
        async for request in request_iterator:
            if request.HasField("start"):
                pcm = common_pb2.AudioFormat(encoding=F32, sample_rate_hz=24_000, channels=1)
                yield codec_pb2.DecodeResponse(started=codec_pb2.DecodeStarted(format=pcm, samples_per_frame=1920))
                continue
            count = len(request.frames.frames)
            frames += count
            audio = codec_pb2.DecodeAudio(data=self._silence[: count * 1920 * 4])
            yield codec_pb2.DecodeResponse(audio=audio)
        yield codec_pb2.DecodeResponse(finished=codec_pb2.DecodeFinished(frames=frames, samples=frames * 1920))

    async def GetModelInfo(self, request, context):
        return codec_pb2.GetModelInfoResponse(bundle=identity(load_bundle(BUNDLE)), samples_per_frame=1920)


class Watermark(watermark_pb2_grpc.WatermarkServiceServicer):
    async def Embed(self, request_iterator, context):
        got = sent = 0
        async for request in request_iterator:
            if request.HasField("start"):
                started = watermark_pb2.EmbedStarted(format=request.start.format, lookahead_samples=LOOKAHEAD)
                yield watermark_pb2.EmbedResponse(started=started)
                continue
            left = len(request.audio.data) // 4
            while left:
                piece = min(left, PIECE)
                left, got = left - piece, got + piece
                if (ready := got - LOOKAHEAD - sent) > 0:
                    sent += ready
                    yield watermark_pb2.EmbedResponse(audio=watermark_pb2.MarkedAudio(data=bytes(ready * 4)))
        if got > sent:
            yield watermark_pb2.EmbedResponse(audio=watermark_pb2.MarkedAudio(data=bytes((got - sent) * 4)))
        yield watermark_pb2.EmbedResponse(finished=watermark_pb2.EmbedFinished(samples=got))

    async def GetModelInfo(self, request, context):
        return watermark_pb2.GetModelInfoResponse(
            bundle=identity(load_bundle(BUNDLE)), lookahead_samples=LOOKAHEAD, trained=True
        )


async def serve(name: str, listen: str, frame_s: float) -> None:
    """One stage, until the process is ended."""
    servicer, add = {
        "tokenizer": lambda: (Tokenizer(), tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server),
        "backbone": lambda: (Backbone(frame_s), backbone_pb2_grpc.add_BackboneServiceServicer_to_server),
        "codec": lambda: (Codec(), codec_pb2_grpc.add_CodecServiceServicer_to_server),
        "watermark": lambda: (Watermark(), watermark_pb2_grpc.add_WatermarkServiceServicer_to_server),
    }[name]()
    stage = Stage(f"csm.{name}.v1.{name.capitalize()}Service", lambda server: add(servicer, server))
    await StageServer(stage, read(ServerSettings, environ={}, listen=listen)).start()
    await asyncio.Event().wait()


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def processor_s(pid: int) -> float:
    """User and system time of a process so far (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(args: argparse.Namespace) -> None:
    addresses = dict(zip((*STAGES, "gateway"), (f"127.0.0.1:{port}" for port in free_ports(5)), strict=True))
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("CSM_", "OTEL_"))}
    env = clean | {f"CSM_{name.upper()}_ADDRESS": addresses[name] for name in STAGES}
    env |= {"CSM_MODEL": BUNDLE, "CSM_LISTEN": addresses["gateway"], "CSM_LOG_LEVEL": "WARNING"}
    # The stages say nothing that could end: an utterance is as long as asked.
    env |= {"CSM_GATEWAY_CEILING_FACTOR": "0", "CSM_GATEWAY_SILENCE_END_MS": "0"}
    env |= dict(pair.split("=", 1) for pair in args.env)
    async with AsyncExitStack() as stack:

        async def start(*argv: str) -> asyncio.subprocess.Process:
            process = await asyncio.create_subprocess_exec(sys.executable, *argv, env=env)
            stack.push_async_callback(process.wait)
            stack.callback(process.terminate)
            return process

        stage_pids = {}
        for name in STAGES:
            stage_pids[name] = (await start(__file__, "--stage", name, "--listen", addresses[name], "--frame-ms", str(args.frame_ms))).pid
        profiled = ["-m", "cProfile", "-o", args.profile] if args.profile else []
        pids = []
        for port in free_ports(args.gateways):
            env |= {"CSM_SHARE_PORT": str(args.gateways > 1), "CSM_HEALTH_LISTEN": f"127.0.0.1:{port}"}
            pids.append((await start(*profiled, "-m", "gateway")).pid)
            await wait_ready(env["CSM_HEALTH_LISTEN"], 60)
        options = argparse.Namespace(address=addresses["gateway"], timeout=300.0)
        for name in ("tls_ca", "tls_cert", "tls_key", "token_file"):
            setattr(options, name, None)
        plan = Plan(
            streams=args.streams,
            duration_s=args.duration,
            ramp_up_s=min(5.0, args.duration / 3),
            audio_s=args.audio_seconds,
            listens=not args.flat_out,
        )
        if args.attach:
            print("gateway process", *pids, file=sys.stderr)
        before = [processor_s(pid) for pid in pids]
        sb = {n: processor_s(p) for n, p in stage_pids.items()}
        outcome = await fleet.run(options, plan, args.processes, lambda _: None)
        show(point(outcome), [processor_s(pid) - spent_s for pid, spent_s in zip(pids, before, strict=True)])
        print({n: round(1000 * (processor_s(p) - sb[n]) / point(outcome).audio_s, 2) for n, p in stage_pids.items()})


def show(found: Point, each_s: list[float]) -> None:
    """each_s: processor time of each gateway process."""
    first, lag, spent_s = found.first_audio_s, found.client_lag_s, sum(each_s)
    print(
        f"{found.label} streams, {found.ok} utterances, {sum(found.errors.values())} errors {found.errors}, "
        f"{found.audio_s:.0f} s of audio in {found.wall_s:.1f} s ({found.real_time_streams:.0f} real-time streams)\n"
        f"gateway: {1000 * spent_s / max(found.audio_s, 1e-9):.2f} ms of processor time per second of audio "
        f"({spent_s:.1f} s in all; of one core {', '.join(f'{one / found.wall_s:.0%}' for one in each_s)})\n"
        f"first audio p50 {first.p50 * 1000:.0f}, p95 {first.p95 * 1000:.0f} ms; chunks {found.gap_s.count}; "
        f"buffer underruns {found.underrun_streams} of {found.measured}; callers' own lag p95 {lag.p95 * 1000:.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--duration", type=float, default=15.0)
    parser.add_argument("--audio-seconds", type=float, default=20.0)
    parser.add_argument("--frame-ms", type=float, default=20.0, help="one frame of a stream every so many ms")
    parser.add_argument("--processes", type=int, default=1, help="of callers")
    parser.add_argument("--gateways", type=int, default=1, help="gateway processes, on one port")
    parser.add_argument(
        "--flat-out", action="store_true", help="the next utterance when the last is received, not heard"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the gateway")
    parser.add_argument("--profile", metavar="FILE", help="run the gateway under cProfile")
    parser.add_argument("--attach", action="store_true", help="say the gateway's process id, for a sampling profiler")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--listen", help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = serve(args.stage, args.listen, args.frame_ms / 1000) if args.stage else measure(args)
    try:
        asyncio.run(work)
    except grpc.aio.AioRpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")


if __name__ == "__main__":
    main()
