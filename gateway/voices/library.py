"""Keeps named voices in a folder or an object store, by fsspec. Gateways share nothing but that place.

A voice is two objects: `<owner>/<name>.<clip hash>.wav`, written first, and `<owner>/<name>.json`, whose creation is
what counts. It is exclusive, so of two gateways that create the same name one wins. Every gateway reads the list again
every few seconds, and at once when it is asked for a name that it does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from gateway.voices.voice import NamedVoice

log = logging.getLogger(__name__)
_MISS_S = 1.0  # an unknown name makes us look again at most this often


class LibraryError(Exception):
    """The place where voices are kept cannot be used. The message says what it answered."""


class VoiceTaken(Exception):
    """Another voice has this name."""


class VoiceLibrary:
    """url: a folder, or what fsspec takes (`s3://bucket/prefix`, `gs://…`). options: for fsspec's file system.

    refresh_s: how often the list is read again. Methods raise: LibraryError.
    """

    def __init__(self, url: str, *, refresh_s: float = 2.0, options: dict[str, Any] | None = None):
        self._refresh_s = refresh_s
        try:
            self._files, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False, **(options or {}))
        except (ImportError, ValueError) as error:
            raise LibraryError(f"{url}: {error}") from error
        self._voices: dict[tuple[str, str], NamedVoice] = {}
        self._stamps: dict[str, Any] = {}
        self._by_path: dict[str, NamedVoice] = {}
        self._read_s = -1e9
        self._reading = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> VoiceLibrary:
        try:
            await self.refresh()
        except LibraryError as error:  # the bundle's own voices speak without it
            log.warning("voice library: %s", error)
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    def voices(self, owner: str) -> list[NamedVoice]:
        """The owner's voices by name, as of the last reading."""
        return sorted((voice for voice in self._voices.values() if voice.owner == owner), key=lambda voice: voice.name)

    async def get(self, owner: str, name: str) -> NamedVoice | None:
        """The voice, or None when the owner has none of that name."""
        found = self._voices.get((owner, name))
        if found is None and time.monotonic() - self._read_s > _MISS_S:
            await self.refresh()
            found = self._voices.get((owner, name))
        return found

    async def clip(self, voice: NamedVoice) -> bytes:
        """The voice's WAV file."""
        return await self._run(self._files.cat_file, self._clip_path(voice))

    async def create(self, voice: NamedVoice, wav: bytes) -> NamedVoice:
        """Keep it. Returns what is kept: an earlier voice of the same content, if there is one. Raises: VoiceTaken."""
        await self._run(self._write, self._clip_path(voice), wav, False)
        try:
            await self._run(self._write, self._path(voice.owner, voice.name), voice.to_json(), True)
        except FileExistsError:
            await self.refresh()
            kept = self._voices.get((voice.owner, voice.name))
            if kept is None or kept.id != voice.id:
                if kept is not None and kept.clip_sha256 != voice.clip_sha256:
                    with contextlib.suppress(LibraryError):
                        await self._run(self._files.rm_file, self._clip_path(voice))
                raise VoiceTaken(voice.name) from None
            return kept
        await self.refresh()
        return voice

    async def delete(self, voice: NamedVoice) -> None:
        """Forget it, its clip too."""
        for path in (self._path(voice.owner, voice.name), self._clip_path(voice)):
            await self._run(self._remove, path)
        await self.refresh()

    async def refresh(self) -> None:
        """Read the list again; only what changed is read whole."""
        async with self._reading:
            await self._run(self._read)
            self._read_s = time.monotonic()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await self.refresh()
            except LibraryError as error:
                log.warning("voice library: %s", error)

    def _read(self) -> None:
        stamps = dict(self._listed())
        by_path = {path: voice for path, voice in self._by_path.items() if stamps.get(path) == self._stamps.get(path)}
        for path in stamps.keys() - by_path.keys():
            try:
                by_path[path] = NamedVoice.from_json(self._files.cat_file(path))
            except FileNotFoundError:
                continue
            except ValueError as error:
                log.warning("voice library: %s: %s", path, error)
        self._stamps, self._by_path = stamps, by_path
        self._voices = {(voice.owner, voice.name): voice for voice in by_path.values()}

    def _listed(self) -> Iterator[tuple[str, Any]]:
        try:
            found = self._files.find(self._root, detail=True)
        except FileNotFoundError:
            return
        for path, info in found.items():
            if path.endswith(".json"):
                changed = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
                yield path, (info.get("size"), changed)

    def _write(self, path: str, data: bytes, exclusive: bool) -> None:
        if isinstance(self._files, LocalFileSystem):
            _write_local(path, data, exclusive)
        elif exclusive:
            with self._files.open(path, "xb") as file:
                file.write(data)
        else:
            self._files.pipe_file(path, data)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # another caller was first
            self._files.rm_file(path)

    async def _run(self, function: Any, *args: Any) -> Any:
        try:
            return await asyncio.to_thread(function, *args)
        except FileExistsError:
            raise
        except FileNotFoundError as error:
            raise LibraryError(f"not there: {error}") from error
        except Exception as error:  # each object store has errors of its own
            raise LibraryError(f"{type(error).__name__}: {error}") from error

    def _path(self, owner: str, name: str) -> str:
        return f"{self._root}/{_safe(owner)}/{name}.json"

    def _clip_path(self, voice: NamedVoice) -> str:
        return f"{self._root}/{_safe(voice.owner)}/{voice.name}.{voice.clip_sha256[:32]}.wav"


def _safe(owner: str) -> str:
    """A token's name as one part of a path."""
    return "o-" + quote(owner, safe="").replace(".", "%2E")


def _write_local(path: str, data: bytes, exclusive: bool) -> None:
    """No reader sees a half-written file."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".new-", delete=False) as file:
        file.write(data)
    try:
        if exclusive:
            os.link(file.name, path)
        else:
            os.replace(file.name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file.name)
