"""The voice library, in a folder and in an object store that speaks the S3 protocol."""

from __future__ import annotations

import asyncio
import dataclasses
import os

import pytest

from gateway.voices.library import LibraryError, VoiceLibrary, VoiceTaken
from gateway.voices.voice import NamedVoice
from support.s3 import empty_bucket, s3_server

VOICE = NamedVoice(
    owner="radio.one/..",
    name="ada",
    speaker=3,
    transcript="Hello, I am Ada.",
    language="en",
    consent_statement="I agree.",
    audio_s=1.5,
    created_s=1.0,
    clip_sha256="ab" * 32,
    labels={"mood": "calm"},
)
KEYS = {"key": "test", "secret": "test"}


@pytest.fixture(scope="module")
def s3():
    with s3_server() as url:
        yield url


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path):
    """(url, options) of an empty library."""
    if request.param == "folder":
        return str(tmp_path / "voices"), {}
    endpoint = request.getfixturevalue("s3")
    _, bucket = empty_bucket(endpoint)
    return f"s3://{bucket}/voices", {**KEYS, "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"}}


def library(place, refresh_s=600.0):
    url, options = place
    return VoiceLibrary(url, refresh_s=refresh_s, options={**options, "skip_instance_cache": True})


async def test_a_voice_comes_back_as_it_was_kept_and_leaves_nothing_when_deleted(place):
    async with library(place) as voices:
        assert await voices.create(VOICE, b"RIFF") == VOICE
        assert await voices.get(VOICE.owner, "ada") == VOICE
        assert await voices.clip(VOICE) == b"RIFF"
        assert voices.voices(VOICE.owner) == [VOICE] and voices.voices("someone else") == []
        await voices.delete(VOICE)
        assert voices.voices(VOICE.owner) == []
        with pytest.raises(LibraryError):
            await voices.clip(VOICE)


async def test_a_voice_that_two_callers_delete_at_once_is_deleted(place):
    async with library(place) as one, library(place) as two:
        await one.create(VOICE, b"RIFF")
        await asyncio.gather(one.delete(VOICE), two.delete(VOICE))
        await one.delete(VOICE)
        assert one.voices(VOICE.owner) == []
        with pytest.raises(LibraryError):
            await one.clip(VOICE)


async def test_the_same_content_is_the_same_voice_and_other_content_is_refused(place):
    async with library(place) as voices:
        await voices.create(VOICE, b"RIFF")
        later = dataclasses.replace(VOICE, created_s=2.0)
        assert (await voices.create(later, b"RIFF")).created_s == 1.0
        with pytest.raises(VoiceTaken):
            await voices.create(dataclasses.replace(VOICE, transcript="Other words."), b"RIFF")
        assert (await voices.get(VOICE.owner, "ada")).transcript == VOICE.transcript


async def test_two_gateways_share_nothing_but_the_place(place):
    async with library(place) as one, library(place, refresh_s=0.01) as two:
        await one.create(VOICE, b"RIFF")
        async with asyncio.timeout(20):
            while not two.voices(VOICE.owner):
                await asyncio.sleep(0.01)
        assert await two.clip(VOICE) == b"RIFF"
        await two.delete(VOICE)
        await one.refresh()
        assert one.voices(VOICE.owner) == []


async def test_of_two_creators_of_one_name_one_wins(place):
    async with library(place) as one, library(place) as two:
        other = dataclasses.replace(VOICE, transcript="Other words.", clip_sha256="cd" * 32)
        results = await asyncio.gather(one.create(VOICE, b"RIFF"), two.create(other, b"WAVE"), return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["NamedVoice", "VoiceTaken"]


async def test_what_is_no_voice_is_left_out(tmp_path):
    async with library((str(tmp_path), {})) as voices:
        await voices.create(VOICE, b"RIFF")
        folder = next(tmp_path.iterdir())
        (folder / "bad.json").write_text("{")
        (folder / "worse.json").write_text('{"name": "../up"}')
        await voices.refresh()
        assert voices.voices(VOICE.owner) == [VOICE]


async def test_an_owner_cannot_leave_its_folder(tmp_path):
    async with library((str(tmp_path / "voices"), {})) as voices:
        await voices.create(dataclasses.replace(VOICE, owner=".."), b"RIFF")
        assert os.listdir(tmp_path) == ["voices"]


async def test_a_place_that_cannot_be_used_says_so():
    with pytest.raises(LibraryError, match="nosuch"):
        VoiceLibrary("nosuch://bucket")
    with pytest.raises(LibraryError):
        async with VoiceLibrary("/proc/1/nowhere") as voices:
            await voices.create(VOICE, b"RIFF")


async def test_a_name_that_is_taken_leaves_no_clip_behind(place):
    async with library(place) as voices:
        await voices.create(VOICE, b"first")
        kept = await asyncio.to_thread(voices._files.find, voices._root)
        with pytest.raises(VoiceTaken):
            await voices.create(dataclasses.replace(VOICE, clip_sha256="cd" * 32), b"second")
        assert await asyncio.to_thread(voices._files.find, voices._root) == kept
        with pytest.raises(VoiceTaken):  # another voice of the same clip, which stays
            await voices.create(dataclasses.replace(VOICE, transcript="Other words."), b"first")
        assert await voices.clip(VOICE) == b"first"


@pytest.mark.parametrize("field", ["owner", "transcript", "clip_sha256"])
def test_a_file_whose_fields_have_wrong_types_is_no_voice(field):
    with pytest.raises(ValueError, match="wrong type"):
        NamedVoice.from_json(dataclasses.replace(VOICE, **{field: ["x"]}).to_json())
