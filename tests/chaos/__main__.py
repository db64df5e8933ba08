"""`make chaos`: stages are killed, frozen, restarted and cut off while callers speak; prints what they heard of it.

Two replicas of each stage that is hit (all four, unless --stages names some), one of the others and a gateway run on
this machine with the bundled model. Each round hits one replica that is at work, waits until it is back, and looks at
every utterance that ran meanwhile. Ends with 1 when an utterance failed or differs from its undisturbed twin, when a
replica that does not answer was noticed late or made callers wait, or when a slot is in use after the last caller has
gone.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.callers import TEXTS, Callers, Stream
from chaos.fleet import Fleet, Replica

STAGES = ("tokenizer", "backbone", "codec", "watermark")
_RETURN_S = 1.5  # a replica that is back is called again after its next health check
# Of faults that no closed connection announces.
SILENT = ("freeze", "cut")
NOTICED_WITHIN_S = 3.0
FIRST_AUDIO_WITHIN_S = 4.0


@dataclass(frozen=True)
class Row:
    """One line of the table. noticed_s: of each round whose fault is silent, the seconds until the replica was ejected."""

    fault: str
    stage: str
    rounds: int
    streams: Sequence[Stream]
    resumed: int
    noticed_s: Sequence[float] = ()

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
    def faulty(self) -> bool:
        """Whether callers noticed more of it than they may."""
        late = max(self.noticed_s, default=0.0) > NOTICED_WITHIN_S
        slow = self.fault in SILENT and self.slowest_first_audio_s > FIRST_AUDIO_WITHIN_S
        return bool(self.failed or self.off or late or slow)

    @property
    def longest_silence_s(self) -> float:
        return max((stream.longest_silence_s for stream in self.streams), default=0.0)

    @property
    def slowest_first_audio_s(self) -> float:
        return max((stream.first_audio_s or 0.0 for stream in self.streams), default=0.0)


class Faults:
    """What can be done to a replica. Each returns once it is over and the replica is ready again.

    Silent ones give the seconds until the gateway had noticed: infinity when it did not as long as they lasted.
    """

    def __init__(self, fleet: Fleet, freeze_s: float):
        self._fleet, self._freeze_s = fleet, freeze_s

    async def kill(self, replica: Replica) -> None:
        """SIGKILL, then a fresh process."""
        await self._replace(replica, signal.SIGKILL)

    async def restart(self, replica: Replica) -> None:
        """SIGTERM: it drains, and a fresh process follows."""
        await self._replace(replica, signal.SIGTERM)

    async def freeze(self, replica: Replica) -> float:
        """SIGSTOP, and SIGCONT later."""
        assert replica.process is not None
        process = replica.process
        return await self._silence(
            replica, lambda: process.send_signal(signal.SIGSTOP), lambda: process.send_signal(signal.SIGCONT)
        )

    async def cut(self, replica: Replica) -> float:
        """Its path swallows all bytes, and lets them through later."""
        return await self._silence(replica, replica.path.cut, replica.path.mend)

    async def _silence(self, replica: Replica, begin: Callable[[], None], end: Callable[[], None]) -> float:
        ejected, began_s, noticed_s = await self._fleet.ejected(replica.stage), time.monotonic(), math.inf
        begin()
        try:
            while (passed_s := time.monotonic() - began_s) < self._freeze_s:
                if noticed_s == math.inf and await self._fleet.ejected(replica.stage) > ejected:
                    noticed_s = time.monotonic() - began_s
                await asyncio.sleep(0.1 if noticed_s == math.inf else self._freeze_s - passed_s)
        finally:
            end()
        await self._fleet.ready(replica)
        return noticed_s

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
    texts: int = len(TEXTS),
    freeze_s: float = 10.0,
    quiet_s: float = 10.0,
    limit_s: float = math.inf,
    model: str = "embedded",
    logs: Path,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Row], int]:
    """The rows, the first of them without any fault, and the slots that are in use after all.

    limit_s: no round begins later.
    """
    ends_s = time.monotonic() + limit_s
    async with Fleet(logs, doubled=stages, model=model, resumes=3) as fleet:
        speaking = Callers(fleet.gateway, callers, texts)
        await speaking.learn()
        speaking.start()
        rows = [await _row(fleet, speaking, "none", "-", [lambda: asyncio.sleep(quiet_s)], ends_s)]
        say(_line(rows[0]))
        doing = Faults(fleet, freeze_s)
        for fault in faults:
            for stage in stages:
                work = [_round(fleet, getattr(doing, fault), fleet.replicas[stage][n % 2]) for n in range(rounds)]
                if time.monotonic() < ends_s:
                    rows.append(await _row(fleet, speaking, fault, stage, work, ends_s))
                    say(_line(rows[-1]))
        await speaking.stop()
        return rows, await fleet.leaked()


def _round(
    fleet: Fleet, fault: Callable[[Replica], Awaitable[float | None]], replica: Replica
) -> Callable[[], Awaitable[float | None]]:
    async def work() -> float | None:
        if replica.stage != "tokenizer":  # which works for a millisecond
            await fleet.busy(replica)
        noticed_s = await fault(replica)
        await asyncio.sleep(_RETURN_S)
        return noticed_s

    return work


async def _row(
    fleet: Fleet,
    callers: Callers,
    fault: str,
    stage: str,
    work: Sequence[Callable[[], Awaitable[float | None]]],
    ends_s: float,
) -> Row:
    before_s, before = time.monotonic(), await fleet.resumed()
    noticed_s = [await one() for one in work if time.monotonic() < ends_s]
    streams = [stream for stream in callers.streams if stream.ended_s >= before_s]
    resumed, silent_s = await fleet.resumed() - before, [seconds for seconds in noticed_s if seconds is not None]
    return Row(fault, stage, len(noticed_s), streams, resumed, silent_s)


_HEAD = (
    f"{'fault':8} {'stage':10} {'rounds':>6} {'whole':>7} {'resumed':>7} {'failed':>6} {'samples off':>11} "
    f"{'noticed':>10} {'longest silence':>15} {'first audio':>11}"
)


def _line(row: Row) -> str:
    noticed = f"{max(row.noticed_s):8.2f} s" if row.noticed_s else f"{'-':>10}"
    return (
        f"{row.fault:8} {row.stage:10} {row.rounds:6} {row.whole:7} {row.resumed:7} {row.failed:6} {row.off:11} "
        f"{noticed} {row.longest_silence_s:13.2f} s {row.slowest_first_audio_s:9.2f} s"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="of each fault at each stage (default 3)")
    parser.add_argument("--faults", default="kill,freeze,restart,cut", help="which, with commas between")
    parser.add_argument("--stages", default=",".join(STAGES), help="which, with commas between")
    parser.add_argument("--callers", type=int, default=8, help="who speak at once (default 8)")
    parser.add_argument("--freeze-s", type=float, default=10.0, help="how long a freeze or a cut lasts (default 10)")
    parser.add_argument("--limit-s", type=float, default=math.inf, help="begin no round later (default: no limit)")
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
                limit_s=options.limit_s,
                model=options.model,
                logs=options.logs or Path(folder),
                say=lambda line: print(line, flush=True),
            )
        )
    failures = {stream.error for row in rows for stream in row.streams if stream.error}
    print(f"leaked slots: {leaked}")
    for failure in sorted(failures):
        print(f"failed: {failure}")
    sys.exit(1 if leaked or any(row.faulty for row in rows) else 0)


if __name__ == "__main__":
    main()
