"""The five processes with the bundled model, and where each serves its metrics."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.cli.ports import free_ports
from gateway.cli.supervisor import Child, Supervisor


@asynccontextmanager
async def running_chain(folder: Path, settings: Mapping[str, str]) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """(the gateway's address, service → URL of its metrics), once all are ready. Their logs are in folder/logs."""
    addresses = {name: f"127.0.0.1:{port}" for name, port in free_ports().items()}
    common = {
        "CSM_GRACE_S": "5",
        **{f"CSM_{name.upper()}_ADDRESS": address for name, address in addresses.items() if name != "gateway"},
        **settings,
    }
    children = [
        Child(name, (sys.executable, "-m", name if name == "gateway" else f"services.{name}"), address,
              {**common, "CSM_LISTEN": address})
        for name, address in addresses.items()
    ]  # fmt: skip
    async with Supervisor(children, folder / "logs") as running:
        await running.wait_ready(240, lambda child, took_s: None)
        yield (
            addresses["gateway"],
            {
                path.stem: found[1]
                for path in (folder / "logs").glob("*.log")
                if (found := re.search(r"metrics on (http://[\d.:]+/metrics)", path.read_text()))
            },
        )
