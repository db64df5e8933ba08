"""Conversations as load: turns with pauses between, in one Converse call each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm_client import Conversation, ConverseEvent, SpeechClient
from csm_client.exceptions import SpeechError

from gateway.cli.bench.caller import hear, miscount, note_summary
from gateway.cli.bench.listener import Listener
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.record import ACCOUNTING, OK, Record


async def converse(
    client: SpeechClient,
    bundle: common_pb2.BundleIdentity,
    plan: Plan,
    next_text: Callable[[], str],
    clock: Callable[[], float],
    ended: Callable[[Record], None],
) -> bool:
    """One conversation of `plan.turns` turns, each heard out, `plan.pause_s` between two.

    ended: called with each turn's record, also when it fails or is cancelled. Returns: whether all went well.
    """
    try:
        async with client.converse(speaker=plan.speaker, encoding="pcm_s16le") as talk:
            events, listener = aiter(talk), Listener(plan.buffer_s)
            for turn in range(1, plan.turns + 1):
                if turn > 1:
                    await asyncio.sleep(max(0.0, listener.done_s - clock()) + plan.pause_s)
                text, listener = next_text(), Listener(plan.buffer_s)
                record = Record(intended_s=clock(), sent_s=clock(), turn=turn)
                try:
                    await talk.configure(speech_pb2.ConverseConfigure(max_audio_ms=plan.max_audio_ms(text)))
                    await talk.say(text)
                    await _hear_turn(talk, events, bundle, record, listener, clock)
                except SpeechError as error:
                    record.status, record.problem = error.code.name, str(error)
                finally:
                    record.note(listener, clock())
                    ended(record)
                if record.status != OK:
                    return False
    except SpeechError as error:  # before the first turn
        ended(Record(intended_s=clock(), sent_s=clock(), status=error.code.name, problem=str(error), turn=1))
        return False
    return True


async def _hear_turn(
    talk: Conversation,
    events: AsyncIterator[ConverseEvent],
    bundle: common_pb2.BundleIdentity,
    record: Record,
    listener: Listener,
    clock: Callable[[], float],
) -> None:
    form = common_pb2.AudioFormat()
    async for event in events:
        match event:
            case speech_pb2.TurnStarted():
                form = event.format
            case speech_pb2.TurnAudio():
                record.bytes += len(event.data)
                hear(listener, event.data, bundle.sample_rate_hz, clock())
            case speech_pb2.TurnFinished():
                note_summary(event.summary, record)
                record.problem = miscount(form, event.summary, bundle, record.bytes)
                record.status = ACCOUNTING if record.problem else OK
                record.trace_id = talk.started.trace_id if talk.started is not None else ""
                return
    record.status, record.problem = "UNAVAILABLE", "the conversation ended before its turn"
