"""`POST /v1/audio/watermark`: whether a file, the request's body, carries the deployment's watermark."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import grpc
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm_client.exceptions import broken_contract, from_rpc_error

from gateway.http.config import HttpSettings
from gateway.http.errors import bad_request
from gateway.http.exchange import Exchange
from gateway.http.summary import verdict_fields
from gateway.http.upstream import Upstream

_PIECE_BYTES = 256 * 1024
_YES = {"1": True, "true": True, "0": False, "false": False}


class Watermark:
    """The file goes on as it comes: none of it is kept here."""

    def __init__(self, settings: HttpSettings, upstream: Upstream):
        self._settings, self._upstream = settings, upstream

    async def __call__(self, exchange: Exchange) -> None:
        """Raises: HttpError, SpeechError, CallerLeft."""
        speeds = _YES.get(exchange.query.get("speeds", "0").lower())
        if speeds is None:
            raise bad_request("speeds", "must be 0 or 1")
        call = self._upstream.speech.VerifyWatermarkStream(metadata=exchange.metadata())
        try:
            await self._send(call, exchange, common_pb2.WatermarkSearch(speeds=speeds))
            found = await exchange.unless_caller_leaves(self._receive(call))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()
        await exchange.answer_json(verdict_fields(found))

    async def _send(self, call: Any, exchange: Exchange, search: common_pb2.WatermarkSearch) -> None:
        try:
            start = speech_pb2.VerifyWatermarkStart(search=search)
            await call.write(speech_pb2.VerifyWatermarkStreamRequest(start=start))
            limit = self._settings.max_upload_mib * 1024 * 1024
            async with aclosing(exchange.pieces(limit, "file")) as pieces:
                async for piece in pieces:
                    for at in range(0, len(piece), _PIECE_BYTES):
                        wav = piece[at : at + _PIECE_BYTES]
                        await call.write(speech_pb2.VerifyWatermarkStreamRequest(wav=wav))
            await call.done_writing()
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            return  # the call has ended: its status says why

    async def _receive(self, call: Any) -> speech_pb2.VerifyWatermarkResponse:
        async with asyncio.timeout(self._settings.timeout_s):
            while (response := await call.read()) is not grpc.aio.EOF:
                if response.HasField("finished"):
                    return response.finished
        raise broken_contract("the search ended without its result")
