"""`python -m fuzz --calls 1000000 --fleets 8` (in tests/): fuzzes processes of all five services, says what came of it."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from fuzz.runner import fuzz_one_fleet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=50_000, help="in all (default 50,000)")
    parser.add_argument(
        "--fleets", type=int, default=1, help="five processes and a caller each, side by side (default 1)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the first fleet; the next ones follow (default 1)")
    parser.add_argument("--limit-s", type=float, default=math.inf, help="begin no call later (default: no limit)")
    parser.add_argument("--logs", type=Path, default=None, help="folder for the processes' logs")
    options = parser.parse_args()
    folder = options.logs or Path(tempfile.mkdtemp(prefix="csm-fuzz-"))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.fleets, spawn) as pool:
        seeds = range(options.seed, options.seed + options.fleets)
        running = {
            seed: pool.submit(
                fuzz_one_fleet, options.calls // options.fleets, seed, folder / str(seed), options.limit_s
            )
            for seed in seeds
        }
        reports = {seed: future.result() for seed, future in running.items()}
    for seed, report in reports.items():
        print(f"seed {seed}: " + "\n  ".join(report.lines()), flush=True)
    clean = sum(report.is_clean for report in reports.values())
    calls = sum(report.calls for report in reports.values())
    internal = sum(statuses["INTERNAL"] for report in reports.values() for statuses in report.statuses.values())
    crashes = sum(len(report.died) for report in reports.values())
    print(f"{calls} calls: {crashes} crashes, {internal} INTERNAL; {clean} of {len(reports)} fleets without a fault")
    sys.exit(0 if clean == len(reports) else 1)


if __name__ == "__main__":
    main()
