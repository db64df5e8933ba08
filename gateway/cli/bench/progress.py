"""A point of load as it runs, on one line of a terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from gateway.cli.bench import fleet
from gateway.cli.bench.record import OK, UNFINISHED
from gateway.cli.bench.stats import Spread

_EVERY_S = 0.25


class Line:
    """`async with` nothing, `with` this; give `show` to fleet.run. Silent where there is no terminal."""

    def __init__(self, console: Console):
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[news]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._shown = 0.0

    def __enter__(self) -> Line:
        self._bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.__exit__(kind, error, traceback)

    def show(self, progress: fleet.Progress) -> None:
        if self._bars.disable or progress.elapsed_s - self._shown < _EVERY_S:
            return
        self._shown = progress.elapsed_s
        if self._task is None:
            self._task = self._bars.add_task(progress.plan.label, total=progress.plan.duration_s, news="")
        self._bars.update(self._task, completed=progress.elapsed_s, news=news(progress))


def news(progress: fleet.Progress) -> str:
    """Such as `12/30 s  64 at once  180 done  0 failed  first audio p50 210 p95 380 ms  0 underruns`."""
    records = progress.outcome.records
    done = [record for record in records if record.status == OK]
    failed = sum(record.status not in (OK, UNFINISHED) for record in records)
    first = Spread.of(record.first_audio_s for record in done if record.first_audio_s is not None)
    latency = f"  first audio p50 {first.p50 * 1000:.0f} p95 {first.p95 * 1000:.0f} ms" if first else ""
    return (
        f"{progress.elapsed_s:.0f}/{progress.plan.duration_s:g} s  {progress.active} at once  {len(done)} done  "
        f"{failed} failed{latency}  {sum(record.underruns > 0 for record in done)} underruns"
    )
