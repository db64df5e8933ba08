"""Voices by name: kept, listed, spoken with, and each its owner's own."""

from __future__ import annotations

import hashlib

import grpc
import numpy as np
import pytest
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from csm.voice.v1 import voice_pb2, voice_pb2_grpc

from gateway.audio import open_encoder
from services.runtime.audio import wav_bytes
from services.runtime.errors import rich_details

SECONDS = 2


def clip(seconds=SECONDS):
    return common_pb2.AudioClip(wav=wav_bytes(np.full(seconds * 24_000, 0.1, np.float32), 24_000))


def voice(name="ada", **fields):
    given = {"speaker": 3, "transcript": "I am Ada.", "audio": clip(), "consent_statement": "I agree."} | fields
    return voice_pb2.CreateVoiceRequest(name=name, **given)


def mp3():
    encoder = open_encoder("mp3", input_rate_hz=24_000)
    return b"".join([*encoder.feed(np.full(SECONDS * 24_000, 0.1, np.float32)), *encoder.finish()])


async def test_a_voice_may_be_an_mp3(open_chain):
    chain = await open_chain()
    kept = (await stub_of(chain).CreateVoice(voice(audio=common_pb2.AudioClip(file=mp3())), timeout=20)).voice
    assert kept.audio_duration.ToMilliseconds() == pytest.approx(1000 * SECONDS, abs=110)
    await say(chain, voice="ada")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub_of(chain).CreateVoice(voice("bea", audio=common_pb2.AudioClip(file=b"fLaC" + bytes(99))), timeout=20)
    assert caught.value.details().startswith("audio.file: cannot be decoded")


def stub_of(chain):
    return voice_pb2_grpc.VoiceServiceStub(chain.channel)


def bearer(token):
    return [("authorization", f"Bearer {token}")]


async def say(chain, metadata=None, **fields):
    utterance = speech_pb2.Utterance(text="hello", **fields)
    return await chain.speech.Synthesize(
        speech_pb2.SynthesizeRequest(utterance=utterance), timeout=10, metadata=metadata
    )


async def refused(call, code):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code
    return caught.value


def violations(error):
    return [violation.field for detail in rich_details(error) for violation in getattr(detail, "field_violations", ())]


async def test_a_voice_is_kept_listed_spoken_with_and_deleted(open_chain, probe):
    chain = await open_chain()
    voices = stub_of(chain)
    kept = (await voices.CreateVoice(voice(labels={"mood": "calm"}))).voice
    assert kept.name == "ada" and kept.owner == "local" and len(kept.id) == 64 and kept.language == "en"
    assert kept.audio_duration.ToMilliseconds() == 2000
    assert (await voices.GetVoice(voice_pb2.GetVoiceRequest(name="ADA"))).voice == kept
    names = [one.name for one in (await voices.ListVoices(voice_pb2.ListVoicesRequest())).voices]
    assert names == ["heart", "michael", "emma", "george", "ada"]
    encoded = probe.calls["encoder"]
    for _ in range(3):
        await say(chain, voice="Ada")
    assert probe.calls["encoder"] == encoded + 1  # its prompt is encoded once
    prompt = probe.requests[-1].prompt
    assert bytes(prompt[0].text.ids[2:-1]) == b"I am Ada." and prompt[0].text.ids[1] == 13
    assert [frame.codes[0] for frame in prompt[1].audio.frames] == [7, 7, 7]
    assert prompt[2].text.ids[1] == 13  # it speaks as the voice's speaker
    await voices.DeleteVoice(voice_pb2.DeleteVoiceRequest(name="ada"))
    await refused(voices.GetVoice(voice_pb2.GetVoiceRequest(name="ada")), grpc.StatusCode.NOT_FOUND)
    error = await refused(say(chain, voice="ada"), grpc.StatusCode.INVALID_ARGUMENT)
    assert violations(error) == ["utterance.voice"] and "heart, michael, emma, george" in error.details()


async def test_the_bundles_names_and_aliases_choose_its_speakers(open_chain, probe):
    chain = await open_chain(voice_aliases="Magpie-*=emma, alloy=george")
    for name, speaker in {
        "heart": 0, "Michael": 1, "embedded.emma": 2, "Magpie-Multilingual.EN-US.Aria": 2, "alloy": 3,
    }.items():  # fmt: skip
        await say(chain, voice=name)
        assert probe.requests[-1].prompt[-1].text.ids[1] == 10 + speaker, name
    error = await refused(say(chain, voice="heart", speaker=1), grpc.StatusCode.INVALID_ARGUMENT)
    assert violations(error) == ["utterance.voice"]


async def test_names_that_ready_clients_know_stand_for_voices_until_someone_takes_them(open_chain, probe):
    chain = await open_chain()
    for name, speaker in {"alloy": 0, "ash": 1, "onyx": 1, "Verse": 0, "Magpie-Multilingual.EN-US.Leo": 0}.items():
        await say(chain, voice=name)
        assert probe.requests[-1].prompt[-1].text.ids[1] == 10 + speaker, name
    await stub_of(chain).CreateVoice(voice(name="ash"))
    await say(chain, voice="ash")
    assert len(probe.requests[-1].prompt) == 3  # the caller's own, with its clip


async def test_voices_never_change(open_chain):
    chain = await open_chain()
    voices = stub_of(chain)
    first = (await voices.CreateVoice(voice())).voice
    assert (await voices.CreateVoice(voice())).voice == first
    await refused(voices.CreateVoice(voice(transcript="Other words.")), grpc.StatusCode.ALREADY_EXISTS)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "../up"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "heart"}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"speaker": -1}, "speaker"),
        ({"transcript": "  "}, "transcript"),
        ({"consent_statement": ""}, "consent_statement"),
        ({"language": "zh"}, "language"),
        ({"labels": {str(n): "x" for n in range(17)}}, "labels"),
        ({"audio": common_pb2.AudioClip(wav=b"RIFF")}, "audio.wav"),
        ({"audio": common_pb2.AudioClip()}, "audio.source"),
        ({"audio": clip(31)}, "audio.wav"),
        ({"audio": common_pb2.AudioClip(wav=wav_bytes(np.zeros(2400, np.float32), 24_000))}, "audio"),
    ],
)
async def test_what_cannot_be_a_voice_is_refused_by_field(open_chain, fields, field):
    chain = await open_chain()
    error = await refused(stub_of(chain).CreateVoice(voice(**fields)), grpc.StatusCode.INVALID_ARGUMENT)
    assert violations(error) == [field]
    names = [one.name for one in (await stub_of(chain).ListVoices(voice_pb2.ListVoicesRequest())).voices]
    assert len(names) == 4


async def test_one_owner_cannot_touch_anothers_voice(open_chain, tmp_path):
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        "".join(f'[{name}]\nsha256 = ["{hashlib.sha256(name.encode()).hexdigest()}"]\n' for name in ("ann", "bob"))
    )
    chain = await open_chain(tokens_file=str(tokens), metadata=bearer("ann"))
    voices = stub_of(chain)
    await voices.CreateVoice(voice(), metadata=bearer("ann"))
    await say(chain, metadata=bearer("ann"), voice="ada")
    await refused(say(chain, metadata=bearer("bob"), voice="ada"), grpc.StatusCode.INVALID_ARGUMENT)
    delete = voice_pb2.DeleteVoiceRequest(name="ada")
    await refused(voices.DeleteVoice(delete, metadata=bearer("bob")), grpc.StatusCode.NOT_FOUND)
    await refused(voices.DeleteVoice(delete), grpc.StatusCode.UNAUTHENTICATED)
    mine = (await voices.CreateVoice(voice(transcript="I am Bob's."), metadata=bearer("bob"))).voice
    assert mine.owner == "bob"
    await voices.DeleteVoice(delete, metadata=bearer("ann"))
    assert (await voices.GetVoice(voice_pb2.GetVoiceRequest(name="ada"), metadata=bearer("bob"))).voice == mine


async def test_a_conversation_speaks_with_a_named_voice(open_chain, probe):
    chain = await open_chain()
    await stub_of(chain).CreateVoice(voice())
    requests = [
        speech_pb2.ConverseRequest(configure=speech_pb2.ConverseConfigure(voice="ada")),
        speech_pb2.ConverseRequest(append_text=speech_pb2.AppendText(text="Hello.")),
        speech_pb2.ConverseRequest(flush=speech_pb2.FlushTurn()),
        speech_pb2.ConverseRequest(configure=speech_pb2.ConverseConfigure(voice="emma")),
        speech_pb2.ConverseRequest(append_text=speech_pb2.AppendText(text="Bye.")),
    ]
    async for _ in chain.speech.Converse(iter(requests), timeout=20):
        pass
    first, second = probe.requests
    assert bytes(first.prompt[0].text.ids[2:-1]) == b"I am Ada." and first.prompt[-1].text.ids[1] == 13
    assert second.prompt[-1].text.ids[1] == 12


async def test_a_library_that_cannot_be_used_costs_the_bundles_voices_nothing(open_chain, probe, tmp_path):
    (tmp_path / "file").write_text("no folder")
    chain = await open_chain(voices_url=str(tmp_path / "file" / "voices"))
    await say(chain, voice="heart")
    error = await refused(stub_of(chain).CreateVoice(voice()), grpc.StatusCode.UNAVAILABLE)
    assert "voice library" in error.details()
