"""The page on `/`: text, voice, speech as it is made, where the time went, and a search for the watermark."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # Nothing comes from anywhere else, and no other page may frame this one.
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """One route for each file; the HTML is on `/`."""
    files = [path for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES]
    return [Route("/" if path.suffix == ".html" else f"/page/{path.name}", _serve(path)) for path in files]


def _serve(path: Path) -> Callable[[Request], Awaitable[Response]]:
    body = path.read_bytes()

    async def serve(_: Request) -> Response:
        return Response(body, headers={**_HEADERS, "content-type": _TYPES[path.suffix]})

    return serve
