"""The replicas of a stage behind one name: who gets a call, and who gets it when that one cannot take it.

The name is resolved again and again, each address has a channel and is watched (`gateway.replica`). Calls without a
key go to the replica with the fewest calls of this gateway. Calls with a key go where the key's last call went, unless
that replica's load is 1.25 times the mean; then, and at first, by rendezvous hashing with bounded loads (Mirrokni,
Thorup, Zadimoghaddam 2018): to the first replica in the key's own order whose load is below that. All gateways have the
same order.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import random
from collections.abc import Awaitable, Callable, Collection
from hashlib import blake2b
from typing import Any, TypeVar

import grpc

from gateway.replica import Replica
from gateway.resolver import ResolveError, parse_target
from gateway.stage_calls import Rename, StageCall
from services.runtime.channels import open_replica_channel
from services.runtime.errors import CallError, UnavailableError
from services.runtime.reloadable_file import ReloadableFile

log = logging.getLogger(__name__)
T = TypeVar("T")

OPEN_ATTEMPTS = 3  # rounds over all replicas
LOAD_BOUND = 1.25
_RESOLVE_EVERY_S = 5.0
_BACKOFF_S, _MAX_BACKOFF_S = 0.05, 0.4  # between two rounds; doubles
_MAX_HOMES = 10_000  # keys whose last replica is remembered
_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


class ReplicaSet:
    """Of one stage. Use it as an async context manager."""

    def __init__(
        self,
        stage: str,
        target: str,
        make_stub: Callable[[grpc.aio.Channel], Any],
        *,
        max_message_mib: int,
        credentials: ReloadableFile[grpc.ChannelCredentials] | None = None,
    ):
        """target: `host:port` or a gRPC target. credentials: None is plaintext."""
        self.stage = stage
        self._target, self._make_stub = parse_target(target), make_stub
        self._max_message_mib, self._credentials = max_message_mib, credentials
        self._replicas: dict[str, Replica] = {}
        self._resolver: asyncio.Task[None] | None = None
        self._resolved = asyncio.Event()
        self._why_not = f"{stage}: its name is not resolved yet"
        self._turn = 0  # rotates among equals
        self._homes: dict[str, str] = {}  # key → address of its last call, the least recently used first

    async def __aenter__(self) -> ReplicaSet:
        self._resolver = asyncio.get_running_loop().create_task(self._resolve_often())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._resolver is not None:
            self._resolver.cancel()
            await asyncio.gather(self._resolver, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self._replicas.values()))

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """All that the name holds now."""
        return tuple(self._replicas.values())

    def pick(self, key: str | None = None, avoid: Collection[Replica] = ()) -> Replica | None:
        """The replica for the next call, none of `avoid`. Side effect: it is remembered as the key's.

        Unusable ones are picked when there is no usable one at all: their errors say more than ours. None when all
        that could be picked are to be avoided.
        """
        usable = [replica for replica in self._replicas.values() if replica.usable]
        candidates = [replica for replica in usable or self._replicas.values() if replica not in avoid]
        if not candidates:
            return None
        if key is None:
            self._turn += 1
            turn = self._turn
            return min(
                (candidates[(turn + n) % len(candidates)] for n in range(len(candidates))),
                key=lambda replica: (replica.is_full, replica.load),
            )
        bound = math.ceil(LOAD_BOUND * (sum(replica.load for replica in candidates) + 1) / len(candidates))
        home = self._homes.pop(key, None)
        ranked = sorted(
            candidates, key=lambda replica: (replica.address == home, _rank(key, replica.address)), reverse=True
        )
        chosen = next((replica for replica in ranked if replica.load < bound and not replica.is_full), ranked[0])
        self._homes[key] = chosen.address
        if len(self._homes) > _MAX_HOMES:
            del self._homes[next(iter(self._homes))]
        return chosen

    async def open(
        self,
        start: Callable[[Replica], Awaitable[T]],
        *,
        key: str | None = None,
        avoid: Collection[Replica] = (),
        patience_s: float = 0.0,
    ) -> T:
        """What `start` gives for the first replica that takes the call.

        A replica that refuses for want of room or is gone is passed over; all of them are tried OPEN_ATTEMPTS times.
        avoid: replicas that are tried last. patience_s: try for at least so long.

        Raises: CallError, of a full replica rather than of one that is gone, and whatever else `start` raises.
        """
        refusal: CallError | None = None
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + patience_s
        await self._first_resolution()
        for attempt in itertools.count():
            if attempt >= OPEN_ATTEMPTS and loop.time() >= ends_s:
                break
            if attempt:
                await asyncio.sleep(min(_BACKOFF_S * 2**attempt, _MAX_BACKOFF_S) * random.uniform(0.5, 1.0))
            tried: set[Replica] = set()
            for group in (set(avoid), set()):
                while (replica := self.pick(key, tried | group)) is not None:
                    tried.add(replica)
                    try:
                        return await start(replica)
                    except CallError as error:
                        if error.code not in _RETRIED:
                            raise
                        if error.code is grpc.StatusCode.UNAVAILABLE:
                            replica.suspect()
                        else:
                            replica.refused()
                        if refusal is None or error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                            refusal = error
        raise refusal or UnavailableError(self._why_not)

    async def unary(
        self,
        method: str,
        request: Any,
        *,
        timeout: Callable[[], float],
        rename: Rename | None = None,
        key: str | None = None,
    ) -> Any:
        """The answer of a unary call. timeout: seconds left, asked at each try. Raises: CallError."""

        async def start(replica: Replica) -> Any:
            call = replica.call(method, request, timeout=timeout(), rename=rename)
            try:
                return await call.response()
            finally:
                await call.close()

        return await self.open(start, key=key)

    async def stream(
        self,
        start: Callable[[Replica], StageCall],
        admit: Callable[[StageCall], Awaitable[T]],
        *,
        key: str | None = None,
        avoid: Collection[Replica] = (),
        patience_s: float = 0.0,
    ) -> tuple[Replica, StageCall, T]:
        """Open a stream: `start` makes the call, `admit` sends what opens it and waits for `started`.

        The caller must close the call. Raises: CallError.
        """

        async def attempt(replica: Replica) -> tuple[Replica, StageCall, T]:
            call = start(replica)
            try:
                return replica, call, await admit(call)
            except BaseException:
                await call.close()
                raise

        return await self.open(attempt, key=key, avoid=avoid, patience_s=patience_s)

    async def _first_resolution(self) -> None:
        if not self._resolved.is_set():
            try:
                async with asyncio.timeout(_RESOLVE_EVERY_S):
                    await self._resolved.wait()
            except TimeoutError:
                raise UnavailableError(self._why_not) from None

    async def _resolve_often(self) -> None:
        while True:
            try:
                self._update(await self._target.addresses())
            except ResolveError as error:
                if f"{self.stage}: {error}" != self._why_not:
                    self._why_not = f"{self.stage}: {error}"
                    log.warning("%s", self._why_not)
            self._resolved.set()
            if self._target.fixed:
                return
            await asyncio.sleep(_RESOLVE_EVERY_S * random.uniform(0.8, 1.2))

    def _update(self, addresses: Collection[str]) -> None:
        for address in set(self._replicas) - set(addresses):
            self._replicas.pop(address).retire()
        for address in addresses:
            if address not in self._replicas:
                replica = self._replicas[address] = Replica(
                    self.stage,
                    address,
                    functools.partial(self._connect, address),
                    self._make_stub,
                    self._has_other,
                )
                replica.start()

    def _connect(self, address: str) -> grpc.aio.Channel:
        return open_replica_channel(
            address,
            name=self._target.host,
            max_message_mib=self._max_message_mib,
            credentials=self._credentials,
        )

    def _has_other(self, replica: Replica) -> bool:
        return any(other.usable for other in self._replicas.values() if other is not replica)


def _rank(key: str, address: str) -> bytes:
    return blake2b(f"{key}\0{address}".encode(), digest_size=8).digest()
