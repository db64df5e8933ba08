"""Build hook: adds the stubs of protos/csm to the wheel and to the source distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StubsHook(BuildHookInterface):
    """In a checkout the stubs are two folders up; in an unpacked source distribution they are next to this file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        stubs = Path(self.root, "../../protos/csm").resolve()
        if stubs.is_dir() and version != "editable":
            build_data["force_include"][str(stubs)] = "csm"
