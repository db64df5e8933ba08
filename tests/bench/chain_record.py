"""RECORD: the metrics of each point, scraped while its load is steady, in the form of tests/data/carried.yaml."""

from __future__ import annotations

import asyncio
import time

from chain_layout import Layout
from chain_points import Done, Wish
from chain_setup import facts, setting

from support.telemetry import recording


class Recorder:
    """One point at a time: `begin` when its load begins, `end` when it is over. Without RECORD neither does anything."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self._urls = {process.name: f"http://{process.metrics}/metrics" for process in layout.processes}
        self._folder, self._every_s = setting("RECORD"), setting("RECORD_EVERY_S")
        self._names = recording.asked_for() if self._folder else set()
        self._scraping: asyncio.Task[None] | None = None
        self._scrapes: list[recording.Scrape] = []

    def begin(self, wish: Wish) -> None:
        """Scrape from the end of the ramp until no new utterance begins. The second time: nothing."""
        if self._folder and self._scraping is None:
            self._scrapes = []
            self._scraping = asyncio.ensure_future(self._scrape(wish))

    async def _scrape(self, wish: Wish) -> None:
        begins = time.monotonic() + wish.ramp_s
        for number in range(int((wish.seconds - wish.ramp_s) / self._every_s) + 1):
            due = begins + number * self._every_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._scrapes.append(await recording.scrape_all(self._urls, self._names))
            if (late_s := time.monotonic() - due) > self._every_s / 2:
                raise TimeoutError(f"a scrape ended {late_s:.1f} s late, of {self._every_s} s")

    async def end(self, done: Done) -> str:
        """Write what was scraped, once it is enough: where it is, or why it is nowhere. Empty when nothing began."""
        if (scraping := self._scraping) is None:
            return ""
        self._scraping = None
        scraping.cancel()  # it has ended, unless the point was cut off
        (problem,) = await asyncio.gather(scraping, return_exceptions=True)
        if problem is not None:
            return f"metrics not recorded: {str(problem) or 'the point was cut off'}"
        if len(self._scrapes) < 2:
            return f"metrics not recorded: after the ramp it lasts less than RECORD_EVERY_S, {self._every_s} s"
        point, told = done.point, facts(self._layout)
        run = {
            "on": told["machine"],
            **{name: told[name] for name in ("bundle", "processes", "services")},
            "callers": done.wish.label,
            "seconds": (len(self._scrapes) - 1) * self._every_s,
            "every_s": self._every_s,
            "date": time.strftime("%Y-%m-%d"),
            "carried": done.is_carried,
            "utterances": point.ok,
            "underruns": done.underrun,
            "first_audio_p95_s": point.first_audio_s and round(point.first_audio_s.p95, 3),
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{done.wish.label.replace('/', '-a-')}.yaml"
        await asyncio.to_thread(path.write_text, recording.document(run, self._scrapes))
        return f"metrics recorded in {path}"
