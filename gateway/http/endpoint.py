"""What every route shares: a span, metrics, a permit, and failures as answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from csm_client.exceptions import SpeechError
from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from starlette.types import Receive, Scope, Send

from gateway.http.config import HttpSettings
from gateway.http.errors import HttpError, from_speech_error, too_many_requests
from gateway.http.exchange import CallerLeft, Exchange
from services.runtime import instruments
from services.runtime.admission import Admission
from services.runtime.errors import ResourceExhausted

log = logging.getLogger(__name__)
_tracer = trace.get_tracer("csm.http")
_CALLER_LEFT = 499  # nginx's word for it, in metrics and spans alone

Handler = Callable[[Exchange], Awaitable[None]]


class Endpoint:
    """`handler` as an ASGI application. is_traced: whether requests get a span; monitors' do not."""

    def __init__(
        self, handler: Handler, route: str, settings: HttpSettings, requests: Admission, *, is_traced: bool = True
    ):
        self._handler, self._route, self._settings = handler, route, settings
        self._requests, self._is_traced = requests, is_traced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(
            scope, receive, send, arrival_s=self._settings.arrival_s, stall_s=self._settings.reader_stall_s
        )
        if not self._is_traced:
            await self._answer(exchange)
            return
        method, came_s = scope["method"], time.perf_counter()
        attributes = {
            "http.request.method": method,
            "http.route": self._route,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
        }
        parent = propagate.extract(dict(exchange.headers.items()))
        with _tracer.start_as_current_span(
            f"{method} {self._route}", parent, SpanKind.SERVER, attributes, record_exception=False
        ) as span:
            exchange.request_id = f"{span.get_span_context().trace_id:032x}"
            status = _CALLER_LEFT
            try:
                status = await self._answer(exchange)
            finally:
                _record(span, status, exchange.is_broken)
                labels = {
                    "http.request.method": method,
                    "http.route": self._route,
                    "http.response.status_code": status,
                }
                instruments.http_duration.record(time.perf_counter() - came_s, labels)

    async def _answer(self, exchange: Exchange) -> int:
        """The status that it came to."""
        try:
            try:
                with self._requests.enter():
                    await self._handler(exchange)
                return exchange.status or 500
            except HttpError as error:
                return await _refuse(exchange, error)
            except SpeechError as error:
                return await _refuse(exchange, from_speech_error(error))
            except ResourceExhausted as error:
                return await _refuse(exchange, too_many_requests(error))
        except CallerLeft:
            await exchange.reset()
            return _CALLER_LEFT
        except asyncio.CancelledError:  # the time for draining is over
            await exchange.reset()
            return 503
        except Exception:
            log.exception("a request failed")
            return await _refuse(exchange, HttpError(500, "internal error", code="internal"))


async def _refuse(exchange: Exchange, error: HttpError) -> int:
    """Answer with the error, or break off an answer that has begun."""
    if error.status >= 500:
        log.warning("%d %s", error.status, error.message)
    if exchange.status is None:
        try:
            await exchange.answer(error.status, error.body(), error.headers())
        except CallerLeft:
            return _CALLER_LEFT
    else:
        await exchange.reset()
    return error.status


def _record(span: Span, status: int, is_broken: bool) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 499 or is_broken:
        span.set_attribute("error.type", str(status))
        span.set_status(Status(StatusCode.ERROR, "the caller left" if status == _CALLER_LEFT else ""))
