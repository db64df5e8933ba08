"""What the HTTP process costs: first audio over it against the plain client, in pairs, and many callers at once.

    PYTHONPATH=.:protos:gateway/client python tests/bench/bench_http.py --pairs 100 --callers 32

Starts the chain with the bundled model on this machine's CPUs. Of a pair both calls say the same text with the same
seed, one after the other, in turns which is first; their difference is the HTTP process and its client. Every byte is
accounted for: what came is as long as what the RPC gives for that seed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
from csm_client import SpeechClient

from gateway.cli.ports import free_ports
from gateway.cli.supervisor import Child, Supervisor
from gateway.stage_names import STAGES

TEXT = "Good morning. The letters are on the table."
SPEECH = "/v1/audio/speech"
FORMATS = {
    "pcm": {"response_format": "pcm"},
    "wav": {"response_format": "wav"},
    "sse": {"response_format": "pcm", "stream_format": "sse"},
}
_PAUSE_S = 0.1  # so that no request meets the end of the one before


def children(addresses: dict[str, str], slots: int) -> list[Child]:
    """Five services and the HTTP process."""
    env = {
        **{f"CSM_{stage.upper()}_ADDRESS": addresses[stage] for stage in STAGES},
        "CSM_MODEL": "embedded",
        "CSM_GRACE_S": "2",
        **dict.fromkeys(("CSM_BACKBONE_SLOTS", "CSM_CODEC_SLOTS", "CSM_WATERMARK_STREAMS"), str(slots)),
    }
    found = [
        Child(
            name,
            (sys.executable, "-m", "gateway" if name == "gateway" else f"services.{name}"),
            addresses[name],
            {**env, "CSM_LISTEN": addresses[name]},
        )
        for name in (*STAGES, "gateway")
    ]
    http = {
        "CSM_HTTP_LISTEN": addresses["http"],
        "CSM_HTTP_GATEWAY_ADDRESS": addresses["gateway"],
        "CSM_HTTP_QUEUE_S": "120",
    }
    return [
        *found,
        Child("http", (sys.executable, "-m", "gateway.http"), addresses["http"], {**env, **http}, speaks_http=True),
    ]


async def by_client(client: SpeechClient, seed: int) -> tuple[float, int]:
    """Seconds to the first audio, and bytes of all of it."""
    began_s, first_s, size = time.perf_counter(), 0.0, 0
    async for piece in client.stream(TEXT, voice="heart", seed=seed):
        first_s = first_s or time.perf_counter() - began_s
        size += len(piece)
    return first_s, size


async def by_http(client: httpx.AsyncClient, seed: int, fields: dict[str, str]) -> tuple[float, int]:
    """The same over HTTP; bytes as they came, of the container or the events."""
    body = {"model": "csm", "voice": "heart", "input": TEXT, "seed": seed, **fields}
    began_s, first_s, size = time.perf_counter(), 0.0, 0
    async with client.stream("POST", SPEECH, json=body) as answer:
        answer.raise_for_status()
        async for piece in answer.aiter_raw():
            first_s = first_s or time.perf_counter() - began_s
            size += len(piece)
    return first_s, size


async def pairs(plain: SpeechClient, http: httpx.AsyncClient, name: str, count: int) -> str:
    """A row of the table."""
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(count + 2):
        calls = [lambda: by_client(plain, 6), lambda: by_http(http, 6, FORMATS[name])]
        took = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            took[which], _ = await calls[which]()
            await asyncio.sleep(_PAUSE_S)
        if number >= 2:
            ours.append(1000 * took[0])
            theirs.append(1000 * took[1])
    differences = sorted(b - a for a, b in zip(ours, theirs, strict=True))
    resampled = sorted(statistics.median(random.choices(differences, k=count)) for _ in range(1000))
    return (
        f"| {name} | {count} | {_quantiles(ours)} | {_quantiles(theirs)} | {statistics.median(differences):.2f} "
        f"({resampled[25]:.2f} to {resampled[975]:.2f}) |"
    )


def _quantiles(values: list[float]) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered):.1f} / {ordered[int(0.95 * (len(ordered) - 1))]:.1f}"


async def many(plain: SpeechClient, http: httpx.AsyncClient, callers: int) -> str:
    """A line about many callers at once."""
    expected = {seed: (await by_client(plain, seed))[1] for seed in range(8)}
    began_s = time.perf_counter()
    calls = [by_http(http, number % 8, FORMATS["pcm"]) for number in range(callers)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    took_s = time.perf_counter() - began_s
    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    short = sum(
        answer[1] != expected[number % 8]
        for number, answer in enumerate(answers)
        if not isinstance(answer, BaseException)
    )
    firsts = [1000 * answer[0] for answer in answers if not isinstance(answer, BaseException)]
    return (
        f"{callers} callers at once: {len(failed)} failed, {short} with a wrong number of bytes; first audio "
        f"{_quantiles(firsts) if firsts else '-'} ms (median / p95), all after {took_s:.1f} s"
    )


async def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--formats", default=",".join(FORMATS))
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    addresses = {name: f"127.0.0.1:{port}" for name, port in free_ports(http=True).items()}
    with tempfile.TemporaryDirectory() as logs:
        async with Supervisor(children(addresses, args.callers), Path(logs)) as running:
            await running.wait_ready(240, lambda child, took_s: None)
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            async with (
                SpeechClient(addresses["gateway"]) as plain,
                httpx.AsyncClient(
                    base_url=f"http://{addresses['http']}", timeout=300, limits=limits, trust_env=False
                ) as http,
            ):
                print(
                    "| over HTTP | pairs | plain client, ms (median / p95) | HTTP, ms | difference, ms (median, 95 %) |"
                )
                print("|---|---|---|---|---|", flush=True)
                for name in args.formats.split(","):
                    print(await pairs(plain, http, name, args.pairs), flush=True)
                for callers in (args.callers, args.callers):
                    print(await many(plain, http, callers), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
