"""`make chaos`: stages are killed, frozen, restarted and cut off while callers speak; prints what they heard of it.

Two replicas of each stage and a gateway run on this machine with the bundled model. Each round hits one replica that is
at work, waits until it is back, and looks at every utterance that ran meanwhile. Ends with 1 when an utterance failed or
differs from its undisturbed twin, or when a slot is in use after the last caller has gone.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.callers import Callers, Stream
from chaos.fleet import Fleet, Replica

STAGES = ("tokenizer", "backbone", "codec", "watermark")
_NOTICED_S = 1.5  # a replica that is back is called again after its next health check


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    fault: str
    stage: str
    rounds: int
    streams: Sequence[Stream]
    resumed: int

    @property
    def failed(self) -> int:
        return sum(stream.error is not None for stream in self.streams)

    @property
    def whole(self) -> int:
        return len(self.streams) - self.failed

    @property
    def off(self) -> int:
        return sum(stream.off for stream in self.streams)

    @property
    def longest_silence_s(self) -> float:
        return max((stream.longest_silence_s for stream in self.streams), default=0.0)

    @property
    def slowest_first_audio_s(self) -> float:
        return max((stream.first_audio_s or 0.0 for stream in self.streams), default=0.0)


class Faults:
    """What can be done to a replica. Each returns once it is over and the replica is ready again."""

    def __init__(self, fleet: Fleet, freeze_s: float):
        self._fleet, self._freeze_s = fleet, freeze_s

    async def kill(self, replica: Replica) -> None:
        """SIGKILL, then a fresh process."""
        await self._replace(replica, signal.SIGKILL)

    async def restart(self, replica: Replica) -> None:
        """SIGTERM: it drains, and a fresh process follows."""
        await self._replace(replica, signal.SIGTERM)

    async def freeze(self, replica: Replica) -> None:
        """SIGSTOP, and SIGCONT later."""
        assert replica.process is not None
        replica.process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(self._freeze_s)
        finally:
            replica.process.send_signal(signal.SIGCONT)
        await self._fleet.ready(replica)

    async def cut(self, replica: Replica) -> None:
        """Its path swallows all bytes, and lets them through later."""
        replica.path.cut()
        try:
            await asyncio.sleep(self._freeze_s)
        finally:
            replica.path.mend()
        await self._fleet.ready(replica)

    async def _replace(self, replica: Replica, number: int) -> None:
        assert replica.process is not None
        replica.process.send_signal(number)
        await replica.process.wait()
        await self._fleet.start(replica)
        await self._fleet.ready(replica)


async def run(
    *,
    rounds: int,
    stages: Sequence[str] = STAGES,
    faults: Sequence[str] = ("kill", "freeze", "restart", "cut"),
    callers: int = 8,
    freeze_s: float = 10.0,
    quiet_s: float = 10.0,
    model: str = "embedded",
    logs: Path,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Row], int]:
    """The rows, the first of them without any fault, and the slots that are in use after all."""
    async with Fleet(logs, replicas=2, model=model, resumes=3) as fleet:
        speaking = Callers(fleet.gateway, callers)
        await speaking.learn()
        speaking.start()
        rows = [await _row(fleet, speaking, "none", "-", [lambda: asyncio.sleep(quiet_s)])]
        say(_line(rows[0]))
        doing = Faults(fleet, freeze_s)
        for fault in faults:
            for stage in stages:
                work = [_round(fleet, getattr(doing, fault), fleet.replicas[stage][n % 2]) for n in range(rounds)]
                rows.append(await _row(fleet, speaking, fault, stage, work))
                say(_line(rows[-1]))
        await speaking.stop()
        return rows, await fleet.leaked()


def _round(
    fleet: Fleet, fault: Callable[[Replica], Awaitable[None]], replica: Replica
) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        if replica.stage != "tokenizer":  # which works for a millisecond
            await fleet.busy(replica)
        await fault(replica)
        await asyncio.sleep(_NOTICED_S)

    return work


async def _row(
    fleet: Fleet, callers: Callers, fault: str, stage: str, work: Sequence[Callable[[], Awaitable[None]]]
) -> Row:
    before_s, before = time.monotonic(), await fleet.resumed()
    for one in work:
        await one()
    streams = [stream for stream in callers.streams if stream.ended_s >= before_s]
    return Row(fault, stage, len(work), streams, await fleet.resumed() - before)


_HEAD = f"{'fault':8} {'stage':10} {'rounds':>6} {'whole':>7} {'resumed':>7} {'failed':>6} {'samples off':>11} {'longest silence':>15} {'first audio':>11}"


def _line(row: Row) -> str:
    return (
        f"{row.fault:8} {row.stage:10} {row.rounds:6} {row.whole:7} {row.resumed:7} {row.failed:6} {row.off:11} "
        f"{row.longest_silence_s:13.2f} s {row.slowest_first_audio_s:9.2f} s"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="of each fault at each stage (default 3)")
    parser.add_argument("--faults", default="kill,freeze,restart,cut", help="which, with commas between")
    parser.add_argument("--stages", default=",".join(STAGES), help="which, with commas between")
    parser.add_argument("--callers", type=int, default=8, help="who speak at once (default 8)")
    parser.add_argument("--freeze-s", type=float, default=10.0, help="how long a freeze or a cut lasts (default 10)")
    parser.add_argument("--model", default="embedded", help="bundle (default the bundled one)")
    parser.add_argument("--logs", type=Path, help="folder for the processes' logs (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(_HEAD, flush=True)
        rows, leaked = asyncio.run(
            run(
                rounds=options.rounds,
                stages=options.stages.split(","),
                faults=options.faults.split(","),
                callers=options.callers,
                freeze_s=options.freeze_s,
                model=options.model,
                logs=options.logs or Path(folder),
                say=lambda line: print(line, flush=True),
            )
        )
    failures = {stream.error for row in rows for stream in row.streams if stream.error}
    print(f"leaked slots: {leaked}")
    for failure in sorted(failures):
        print(f"failed: {failure}")
    sys.exit(1 if leaked or any(row.failed or row.off for row in rows) else 0)


if __name__ == "__main__":
    main()
