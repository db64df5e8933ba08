"""The routes."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.http.config import HttpSettings
from gateway.http.endpoint import Endpoint, Handler
from gateway.http.errors import HttpError
from gateway.http.exchange import Exchange
from gateway.http.listings import Models, Ready, Voices, alive
from gateway.http.open_gateway import OpenGatewayGuard
from gateway.http.page import page_routes
from gateway.http.speech import Speech
from gateway.http.upstream import Upstream
from gateway.http.watermark import Watermark
from services.runtime import instruments
from services.runtime.admission import Admission

_EXPOSED = ("x-request-id", "retry-after", "retry-after-ms")
_CODES = {404: "not_found", 405: "method_not_allowed"}


def build_app(settings: HttpSettings, upstream: Upstream, is_draining: Callable[[], bool]) -> Starlette:
    """The ASGI application. Raises: SettingError."""
    requests = Admission("requests", settings.max_requests)
    instruments.observe_admission(requests, "csm.http.requests")
    guard = OpenGatewayGuard(settings, upstream)
    monitors = Admission("health checks", settings.max_requests)

    def route(path: str, method: str, handler: Handler) -> Route:
        async def guarded(exchange: Exchange) -> None:
            await guard.check()
            await handler(exchange)

        return Route(path, Endpoint(guarded, path, settings, requests), methods=[method])

    def health(path: str, handler: Handler) -> Route:
        return Route(path, Endpoint(handler, path, settings, monitors, is_traced=False), methods=["GET"])

    models = Models(upstream)
    ready = Ready(upstream, is_draining)
    routes = [
        route("/v1/audio/speech", "POST", Speech(settings, upstream)),
        route("/v1/audio/watermark", "POST", Watermark(settings, upstream)),
        route("/v1/audio/voices", "GET", Voices(upstream)),
        route("/v1/models", "GET", models),
        route("/v1/models/{model}", "GET", models),
        health("/health", ready),
        health("/readyz", ready),
        health("/healthz", alive),
        health("/livez", alive),
        *(page_routes() if settings.page else ()),
    ]
    origins = [origin.strip() for origin in (settings.cors_origins or "").split(",") if origin.strip()]
    cors = Middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=_EXPOSED
    )
    return Starlette(routes=routes, middleware=[cors] if origins else [], exception_handlers={HTTPException: _no_route})


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path}: {error.detail}"
    failure = HttpError(error.status_code, text, code=_CODES.get(error.status_code))
    return Response(failure.body(), error.status_code, {**(error.headers or {}), "content-type": "application/json"})
