"""Who may call the gateway, and how much: every call shows a bearer token, and every token has limits.

The file of tokens is read again when it changes. Running calls go on even if their token is gone.
Each gateway process counts for itself. Spans carry a token's name; the token is written nowhere.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from opentelemetry import trace

from gateway.config import GatewaySettings
from gateway.token_metrics import TokenMetrics
from gateway.tokens import Token, read_tokens
from services.runtime import instruments, tls
from services.runtime.errors import CALLER, CallError, InvalidArgument, ResourceExhausted
from services.runtime.reloadable_file import InvalidFile, ReloadableFile
from services.runtime.settings import SettingError

log = logging.getLogger(__name__)

_STREAM_RETRY_S = 1.0
_CONVERSATIONS_A_STREAM = 4  # a conversation speaks a part of the time
_WINDOW_S = 60.0
_ROUNDING_S = 1e-3  # a caller who comes back at the stated time is not refused for a nanosecond


_UNCOUNTED = "/ListVoices"
_OPEN = ("/grpc.", "/nvidia.riva.tts.RivaSpeechSynthesis/GetRivaSynthesisConfig")  # whose clients send no token to it


class _Usage:
    """What one token name uses now."""

    def __init__(self) -> None:
        self.calls = self.arriving = self.conversations = 0
        self.texts: dict[Grant, tuple[float, int]] = {}  # of the last minute, oldest first: since when, characters
        self.characters = 0  # of all of them

    def take(self, grant: Grant, at_s: float, characters: int) -> None:
        """Count `characters`."""
        self.texts[grant] = at_s, characters
        self.characters += characters

    def give_back(self, grant: Grant) -> None:
        """Forget what was taken."""
        self.characters -= self.texts.pop(grant, (0.0, 0))[1]

    def expire(self, before_s: float) -> None:
        """Forget what was taken before then: in constant time a text, since a conversation takes word by word."""
        while self.texts:
            oldest = next(iter(self.texts))
            if self.texts[oldest][0] > before_s:
                return
            self.give_back(oldest)


class Grant:
    """An admitted call. Its characters are given back at its end, unless `keep` was called."""

    def __init__(self) -> None:
        self.kept = False

    def keep(self) -> None:
        """The text is being spoken: its characters are spent."""
        self.kept = True


class Access(grpc.aio.ServerInterceptor):
    """Refuses calls without a good token, as an interceptor; counts what they use, in `enter`.

    Health, reflection and Riva's configuration are open to all. Without CSM_TOKENS_FILE everything is, on this machine, or
    where CSM_INSECURE says so.
    """

    def __init__(self, settings: GatewaySettings, clock: Callable[[], float] = time.monotonic):
        """Raises: SettingError."""
        self._clock = clock
        self._metrics = TokenMetrics(settings.token_metrics)
        self._usage: dict[str, _Usage] = {}
        self._caller: ContextVar[Token] = ContextVar("caller")
        self._file: ReloadableFile[list[Token]] | None = None
        if settings.tokens_file is not None:
            path = Path(settings.tokens_file)
            try:
                self._file = ReloadableFile("tokens", [path], lambda: _tokens(path))
            except InvalidFile as error:
                raise SettingError(f"CSM_TOKENS_FILE: {error}") from error
            instruments.observe(self._file, "csm.gateway.tokens.stale", lambda file: int(file.stale()))
            self._metrics.begin(token.name for token in self._file.current())
            if not self._file.current():  # at the start a mistake; later the only way to take the last one out
                raise SettingError(f"CSM_TOKENS_FILE: {path}: names no token")
        elif not tls.is_loopback(settings.listen):
            if tls.NO_TOKENS not in tls.left_open(settings.insecure):
                raise SettingError(
                    f"CSM_LISTEN={settings.listen!r}: beyond this machine callers show tokens: "
                    f"set CSM_TOKENS_FILE, or {tls.INSECURE}={tls.NO_TOKENS}"
                )
            log.warning("calls need no token, as %s says", tls.INSECURE)

    async def intercept_service(self, continuation, handler_call_details):
        handler = await continuation(handler_call_details)
        if self._file is None or handler is None or handler_call_details.method.startswith(_OPEN):
            return handler
        try:
            # Before the body: a unary handler is called once gRPC holds the whole request.
            token = _identify(self._file.current(), handler_call_details.invocation_metadata)
        except CallError as error:
            return _refusal(error)
        kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        behavior = getattr(handler, kind)

        def checked(request: Any, context: grpc.aio.ServicerContext) -> Any:
            # Inside the call's span and its handling of errors, and in its own task.
            trace.get_current_span().set_attribute("csm.token", token.name)
            self._caller.set(token)
            return behavior(request, context)

        if not handler.request_streaming and not handler_call_details.method.endswith(_UNCOUNTED):
            checked.admit = partial(self._arriving, token)  # type: ignore[attr-defined]
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(checked, handler.request_deserializer, handler.response_serializer)

    @contextmanager
    def _arriving(self, token: Token) -> Iterator[None]:
        """Count a request that arrives: with its calls, no more than the token may have. Raises: CallError."""
        usage = self._usage.setdefault(token.name, _Usage())
        if token.max_streams is not None and usage.calls + usage.arriving >= token.max_streams:
            raise self._too_many_calls(token)
        usage.arriving += 1
        try:
            yield
        finally:
            usage.arriving -= 1

    @contextmanager
    def enter(self, characters: int = 0) -> Iterator[Grant]:
        """Hold one of the token's permits, and take `characters` from its minute, while the block runs.

        Raises: CallError when the caller's token allows no more.
        """
        grant = Grant()
        if self._file is None:
            yield grant
            return
        token = self._caller.get(None)
        if token is None:
            raise _unauthenticated("NO_TOKEN", "this call's token was not checked")
        usage = self._usage.setdefault(token.name, _Usage())
        if token.max_streams is not None and usage.calls >= token.max_streams:
            raise self._too_many_calls(token)
        self._spend(token, usage, grant, characters)
        usage.calls += 1
        try:
            yield grant
        finally:
            usage.calls -= 1
            if grant.kept:
                self._metrics.characters(token.name, characters)
            else:
                usage.give_back(grant)

    @contextmanager
    def converse(self) -> Iterator[None]:
        """Hold one of the token's conversations while the block runs: its turns take permits of their own.

        Raises: CallError when the caller's token allows no more.
        """
        token = self._caller.get(None)
        if self._file is None or token is None:
            yield
            return
        usage = self._usage.setdefault(token.name, _Usage())
        if token.max_streams is not None and usage.conversations >= _CONVERSATIONS_A_STREAM * token.max_streams:
            text = f"token {token.name}: all {_CONVERSATIONS_A_STREAM * token.max_streams} conversations are open"
            raise self._limited(token, "TOKEN_CONVERSATIONS", text, _STREAM_RETRY_S)
        usage.conversations += 1
        try:
            yield
        finally:
            usage.conversations -= 1

    def owner(self) -> str:
        """Whose call this is: its token's name, or `local` where no tokens are asked for."""
        token = self._caller.get(None)
        return "local" if token is None else token.name

    def count_audio(self, seconds: float) -> None:
        """Audio of that length was given to the caller."""
        if (token := self._caller.get(None)) is not None:
            self._metrics.audio(token.name, seconds)

    def charge(self, characters: int, field: str) -> None:
        """Take `characters` from the caller's minute, for good. Raises: CallError when its token allows no more."""
        if self._file is not None and (token := self._caller.get(None)) is not None:
            self._spend(token, self._usage.setdefault(token.name, _Usage()), Grant(), characters, field)
            self._metrics.characters(token.name, characters)

    def _spend(self, token: Token, usage: _Usage, grant: Grant, characters: int, field: str = "utterance.text") -> None:
        limit = token.characters_per_minute
        if limit is None or not characters:
            return
        if characters > limit:
            self._count_refusal(token, "TOKEN_CHARACTERS")
            raise InvalidArgument(
                field, f"has {characters} characters, token {token.name} may have {limit} spoken a minute"
            )
        now_s = self._clock()
        usage.expire(now_s - _WINDOW_S + _ROUNDING_S)
        over = usage.characters + characters - limit
        if over > 0:
            for at_s, spent in usage.texts.values():
                over -= spent
                if over <= 0:  # there is room once this one is a minute old
                    text = f"token {token.name}: {characters} characters are more than is left of {limit} a minute"
                    raise self._limited(token, "TOKEN_CHARACTERS", text, at_s + _WINDOW_S - now_s)
        usage.take(grant, now_s, characters)

    def _too_many_calls(self, token: Token) -> ResourceExhausted:
        text = f"token {token.name}: all {token.max_streams} permits are in use"
        return self._limited(token, "TOKEN_STREAMS", text, _STREAM_RETRY_S)

    def _limited(self, token: Token, reason: str, text: str, retry_after_s: float) -> ResourceExhausted:
        self._count_refusal(token, reason)
        return ResourceExhausted(text, retry_after_s, reason=reason, retryable=False, origin=CALLER)

    def _count_refusal(self, token: Token, reason: str) -> None:
        instruments.refusals.add(1, {"reason": reason})
        self._metrics.refused(token.name, reason)


def _identify(tokens: list[Token], metadata: Any) -> Token:
    """The token that a call shows. Raises: CallError (UNAUTHENTICATED)."""
    secret = _bearer_token([value for key, value in metadata or () if key == "authorization"])
    if secret is None:
        raise _unauthenticated("NO_TOKEN", "this server wants one bearer token in the metadata `authorization`")
    digest = hashlib.sha256(secret.encode()).digest()
    found = None
    # All are compared, in constant time each: how long it takes says nothing of the tokens there are.
    for token in tokens:
        for known in token.hashes:
            if hmac.compare_digest(known, digest):
                found = token
    if found is None:
        raise _unauthenticated("WRONG_TOKEN", "this server does not know that token")
    return found


def _bearer_token(values: list[str | bytes]) -> str | None:
    """The token that all `values` show; None when there is none, or when they differ.

    Clients send the header twice when it is among their call credentials too, and proxies join the two by a comma.
    """
    tokens = set()
    for value in values:
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        for part in re.split(r",\s*(?=bearer )", text, flags=re.IGNORECASE):  # a token itself may hold commas
            scheme, _, secret = part.strip().partition(" ")
            tokens.add(secret.strip() if scheme.lower() == "bearer" else "")
    return tokens.pop() or None if len(tokens) == 1 else None


def _tokens(path: Path) -> list[Token]:
    tokens = read_tokens(path)
    if not tokens:
        log.warning("%s names no token: every call is refused", path)
    return tokens


def _refusal(error: CallError) -> grpc.RpcMethodHandler:
    """Ends a call of any kind with `error`, inside its span, and reads nothing of its request.

    To gRPC it is a streaming handler: those read their requests themselves.
    """

    async def refuse(requests: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        raise error
        yield  # type: ignore[unreachable]  # makes it a stream

    return grpc.stream_stream_rpc_method_handler(refuse)


def _unauthenticated(reason: str, text: str) -> CallError:
    instruments.refusals.add(1, {"reason": reason})
    return CallError(grpc.StatusCode.UNAUTHENTICATED, text, reason=reason)
