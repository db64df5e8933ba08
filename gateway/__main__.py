"""`python -m gateway`: the public service."""

from __future__ import annotations

from services.runtime.extras import require_extra

require_extra("gateway")

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.config import GatewaySettings
from gateway.public import open_public
from gateway.stages import Stages
from models.bundle import load_bundle
from models.files import ModelError
from services.runtime.server import Stage, main


@asynccontextmanager
async def open_stage(settings: GatewaySettings) -> AsyncIterator[Stage]:
    """The public services and their channels. Raises: StartError, ModelError."""
    bundle = load_bundle(settings.model)
    async with Stages(settings, bundle) as stages, open_public(settings, bundle, stages) as stage:
        yield stage


if __name__ == "__main__":
    main("gateway", GatewaySettings, open_stage, start_errors=(ModelError,))
