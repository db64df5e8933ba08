"""`python -m fuzz --calls 1000000 --seed 7` (in tests/): fuzzes five processes and says what came of it."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from fuzz.runner import fuzz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, default=None, help="folder for the processes' logs")
    arguments = parser.parse_args()
    folder = arguments.logs or Path(tempfile.mkdtemp(prefix="csm-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    report = asyncio.run(fuzz(arguments.calls, arguments.seed, folder))
    print("\n".join(report.lines()))
    sys.exit(1 if report.broken or report.died or report.logged else 0)


main()
