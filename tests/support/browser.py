"""A headless Chromium for the page's test: the one that `make test` unpacks from an npm package, else the machine's own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, async_playwright

FOLDER = Path(sys.prefix) / "browser"
# In a container Chromium's own sandbox cannot be had, and the page under test is ours.
_ARGUMENTS = ["--no-sandbox", "--no-zygote", "--autoplay-policy=user-gesture-required"]


def executable() -> Path | None:
    """None where there is none."""
    if (FOLDER / "chromium").exists():
        return FOLDER / "chromium"
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return Path(found) if found else None


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Raises: AssertionError where there is no Chromium."""
    path = executable()
    assert path is not None, "no Chromium: `make test` unpacks one, or apt-get install chromium"
    libraries = os.pathsep.join(filter(None, [str(FOLDER / "al2023" / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]))
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path, args=_ARGUMENTS, env={**os.environ, "LD_LIBRARY_PATH": libraries}
        )
        try:
            yield browser
        finally:
            await browser.close()
