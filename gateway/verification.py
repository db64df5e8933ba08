"""VerifyWatermark: what the watermark stage finds in a clip, or in a file that comes in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from csm.speech.v1 import speech_pb2
from csm.watermark.v1 import watermark_pb2

from gateway.replicas import Replica, ReplicaSet
from gateway.stage_calls import StageCall
from services.runtime.errors import InvalidArgument

_FIELDS = {"audio.data": "wav", "start.search.time_limit": "start.search.time_limit"}


async def verify(
    watermark: ReplicaSet, request: speech_pb2.VerifyWatermarkRequest, *, timeout: Callable[[], float], trained: bool
) -> speech_pb2.VerifyWatermarkResponse:
    """timeout: seconds left. trained: whether the bundle's nets are. Raises: CallError."""
    detect = watermark_pb2.DetectRequest(audio=request.audio)
    if request.HasField("search"):
        detect.search.CopyFrom(request.search)
    found = await watermark.unary("Detect", detect, timeout=timeout, rename=lambda field: field)
    return _response(found, trained)


async def verify_stream(
    watermark: ReplicaSet,
    requests: AsyncIterator[speech_pb2.VerifyWatermarkStreamRequest],
    *,
    timeout: Callable[[], float],
    trained: bool,
) -> AsyncGenerator[speech_pb2.VerifyWatermarkStreamResponse, None]:
    """As `verify`; requests: those after start are the file. Raises: CallError."""
    first = await anext(requests, None)
    if first is None or first.WhichOneof("event") != "start":
        raise InvalidArgument("event", "the first message must be start")
    start = watermark_pb2.DetectStart()
    if first.start.HasField("search"):
        start.search.CopyFrom(first.start.search)

    def call(replica: Replica) -> StageCall:
        return replica.call("DetectStream", timeout=timeout(), rename=lambda field: _FIELDS.get(field, field))

    async def admit(stage: StageCall) -> None:
        await stage.write(watermark_pb2.DetectStreamRequest(start=start))
        await stage.first("started")

    _, stage, _ = await watermark.stream(call, admit)
    feeder = asyncio.ensure_future(_feed(stage, requests))
    reading: asyncio.Future[watermark_pb2.DetectStreamResponse | None] | None = None
    try:
        yield speech_pb2.VerifyWatermarkStreamResponse(started=speech_pb2.VerifyWatermarkStarted())
        reading = asyncio.ensure_future(stage.read())
        while True:
            # A message that cannot be passed on ends the search.
            waiting = {reading} if feeder.done() and feeder.exception() is None else {reading, feeder}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                feeder.result()
                continue
            message = reading.result()
            if message is None:
                return
            if message.HasField("finished"):
                finished = _response(message.finished, trained)
                yield speech_pb2.VerifyWatermarkStreamResponse(finished=finished)
                await stage.end()
                return
            progress = speech_pb2.VerifyWatermarkProgress(
                searched=message.progress.searched, marks=message.progress.marks
            )
            yield speech_pb2.VerifyWatermarkStreamResponse(progress=progress)
            reading = asyncio.ensure_future(stage.read())
    finally:
        tasks = [task for task in (feeder, reading) if task is not None]
        for task in tasks:
            task.cancel()
        await stage.close()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(stage: StageCall, requests: AsyncIterator[speech_pb2.VerifyWatermarkStreamRequest]) -> None:
    async for request in requests:
        if request.WhichOneof("event") != "wav":
            raise InvalidArgument("event", "every message after start must be wav")
        audio = watermark_pb2.DetectAudio(data=request.wav)
        await stage.write(watermark_pb2.DetectStreamRequest(audio=audio))
    await stage.done_writing()


def _response(found: watermark_pb2.DetectResponse, trained: bool) -> speech_pb2.VerifyWatermarkResponse:
    return speech_pb2.VerifyWatermarkResponse(
        found=found.found,
        confidence=found.confidence,
        threshold=found.threshold,
        position=found.position if found.HasField("position") else None,
        detectable=trained,
        marks=found.marks,
        verdict=found.verdict,
        searched=found.searched,
        limited=found.limited,
        key_id=found.key_id,
    )
