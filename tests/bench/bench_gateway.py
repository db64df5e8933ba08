"""What a second of speech costs the host in each process: gateway and stages, whose devices compute nothing.

    python tests/bench/bench_gateway.py --streams 64 --duration 15 --frame-ms 20
    python tests/bench/bench_gateway.py --streams 64 --attach           # then: py-spy record --pid ...
    PYTHONPATH=other:other/protos python tests/bench/bench_gateway.py   # another version's code, unpacked in other/

Each stage is its own servicer and scheduler over a null device (null_stages.py): a step of the generator takes
`--frame-ms`, a pass of codec and watermark `--pass-ms`. The gateway is `python -m gateway` with its own
defaults; the callers are those of `csm bench`, in processes of their own. Processor time is the
kernel's count for each process alone, so that neighbours on the machine change it little.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import null_stages
from csm_client.readiness import wait_ready

from gateway.cli.bench import fleet
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.stats import Point, point
from gateway.stage_names import STAGES
from services.runtime.settings import ServerSettings, read


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
    env |= {"CSM_MODEL": null_stages.BUNDLE, "CSM_LISTEN": addresses["gateway"], "CSM_LOG_LEVEL": "WARNING"}
    # The stages say nothing that could end: an utterance is as long as asked.
    env |= {"CSM_GATEWAY_CEILING_FACTOR": "0", "CSM_GATEWAY_SILENCE_END_MS": "0"}
    env |= dict(pair.split("=", 1) for pair in args.env)
    async with AsyncExitStack() as stack:
        card = stack.enter_context(tempfile.NamedTemporaryFile())
        if args.unix:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            addresses |= {name: f"unix:{folder}/{name}" for name in STAGES}
            env |= {f"CSM_{name.upper()}_ADDRESS": addresses[name] for name in STAGES}

        async def start(*argv: str) -> asyncio.subprocess.Process:
            process = await asyncio.create_subprocess_exec(sys.executable, *argv, env=env)
            stack.push_async_callback(process.wait)
            stack.callback(process.terminate)
            return process

        pids: dict[str, int] = {}
        for name in STAGES:
            pass_ms = args.frame_ms if name == "backbone" else args.pass_ms
            argv = ["--stage", name, "--listen", addresses[name], "--pass-ms", str(pass_ms)]
            if args.card:
                argv += [
                    "--card",
                    str(args.card),
                    "--card-file",
                    card.name,
                    "--share",
                    str(args.share),
                    "--sizes",
                    *map(str, args.sizes),
                ]
            pids[name] = (await start(__file__, *argv)).pid
        for number, port in enumerate(free_ports(args.gateways), 1):
            env |= {"CSM_SHARE_PORT": str(args.gateways > 1), "CSM_HEALTH_LISTEN": f"127.0.0.1:{port}"}
            pids[f"gateway-{number}" if number > 1 else "gateway"] = (await start("-m", "gateway")).pid
            await wait_ready(env["CSM_HEALTH_LISTEN"], 60)
        options = argparse.Namespace(address=addresses["gateway"], timeout=300.0)
        for name in ("tls_ca", "tls_cert", "tls_key", "token_file"):
            setattr(options, name, None)
        plan = Plan(
            streams=args.streams,
            duration_s=args.duration,
            ramp_up_s=min(5.0, args.duration / 3) if args.ramp is None else args.ramp,
            audio_s=args.audio_seconds,
            listens=not args.flat_out,
        )
        if args.attach:
            print("processes", pids, file=sys.stderr)
        before = {name: processor_s(pid) for name, pid in pids.items()}
        outcome = await fleet.run(options, plan, args.processes, lambda _: None)
        show(point(outcome), {name: processor_s(pid) - before[name] for name, pid in pids.items()})


def show(found: Point, spent_s: dict[str, float]) -> None:
    """spent_s: processor time of each process."""
    first, lag, audio_s = found.first_audio_s, found.client_lag_s, max(found.audio_s, 1e-9)
    gateways_s = sum(each for name, each in spent_s.items() if name.startswith("gateway"))
    stages = ", ".join(f"{name} {1000 * spent_s[name] / audio_s:.2f}" for name in STAGES)
    busy = ", ".join(f"{name} {each / found.wall_s:.0%}" for name, each in spent_s.items())
    print(
        f"{found.label} streams, {found.ok} utterances, {sum(found.errors.values())} errors {found.errors}, "
        f"{found.audio_s:.0f} s of audio in {found.wall_s:.1f} s ({found.real_time_streams:.0f} real-time streams"
        f"{'' if found.full_load_streams is None else f', {found.full_load_streams:.0f} while all callers were there'}), "
        f"{1 + found.gap_s.count / max(found.ok, 1):.1f} chunks each\n"
        f"ms of processor time per second of audio: gateway {1000 * gateways_s / audio_s:.2f}, {stages}, "
        f"all {1000 * sum(spent_s.values()) / audio_s:.2f}\n"
        f"of one core: {busy}\n"
        f"first audio p50 {first.p50 * 1000:.0f}, p95 {first.p95 * 1000:.0f} ms; "
        f"buffer underruns {found.underrun_streams} of {found.measured}; callers' own lag p95 {lag.p95 * 1000:.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--duration", type=float, default=15.0)
    parser.add_argument("--audio-seconds", type=float, default=20.0)
    parser.add_argument("--frame-ms", type=float, default=20.0, help="duration of a step of the generator")
    parser.add_argument("--pass-ms", type=float, default=8.0, help="duration of a pass of codec and watermark")
    parser.add_argument("--processes", type=int, default=1, help="of callers")
    parser.add_argument("--gateways", type=int, default=1, help="gateway processes, on one port")
    parser.add_argument(
        "--flat-out", action="store_true", help="the next utterance when the last is received, not heard"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the gateway")
    parser.add_argument("--attach", action="store_true", help="say the process ids, for a sampling profiler")
    parser.add_argument(
        "--card", type=int, default=0, metavar="N", help="devices take an H200's time, shared; a stream stands for N"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[*range(128, 4097, 128)], help="with --card: that steps are padded to"
    )
    parser.add_argument("--share", type=float, default=1.0, help="with --card: of its speed that there is")
    parser.add_argument("--unix", action="store_true", help="stages on sockets of the Unix domain")
    parser.add_argument("--ramp", type=float, help="seconds in which the callers come (a third of the duration, 5)")
    parser.add_argument("--generator", default="none", help=argparse.SUPPRESS)
    parser.add_argument("--card-file", help=argparse.SUPPRESS)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--listen", help=argparse.SUPPRESS)
    args = parser.parse_args()
    settings = read(ServerSettings, environ={}, listen=args.listen or "127.0.0.1:0")
    if args.stage and args.card and args.stage != "tokenizer":
        device = null_stages.Card(args.card_file, args.stage, args.card, args.share)
    else:
        device = null_stages.Device(args.pass_ms / 1000, args.generator)
    work = (
        null_stages.serve(args.stage, settings, device, args.sizes if args.card else ())
        if args.stage
        else measure(args)
    )
    try:
        asyncio.run(work)
    except grpc.aio.AioRpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")


if __name__ == "__main__":
    main()
