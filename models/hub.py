"""Files of the model hub, held to the digest that it gives for each before they come to the cache. Knows no torch."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from models.files import ModelError
from models.store import sha256

INCOMING = ".incoming"  # below the hub's cache: what is not checked yet


class DamagedDownload(ModelError):
    """What came is not what the hub says that it sent."""


def download(repo: str, name: str, revision: str | None) -> Path:
    """The file's path in the hub's cache, once it is whole there. One process at a time downloads into a cache.

    It is loaded into a folder beside, where one that is broken off is resumed, and moved when its digest is right.
    Where the file system has no links the cache keeps no digest, and nothing is checked.
    Raises: DamagedDownload, and what hf_hub_download does.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import WeakFileLock

    cache = Path(constants.HF_HUB_CACHE)
    incoming = cache / INCOMING
    (cache / ".locks").mkdir(parents=True, exist_ok=True)
    with WeakFileLock(cache / ".locks" / "incoming.lock"):
        cached = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(cached, str):  # another process was first
            return Path(cached)
        path = Path(hf_hub_download(repo, name, revision=revision, cache_dir=incoming))
        if is_damaged(path):
            found = sha256(path)
            shutil.rmtree(incoming)
            raise DamagedDownload(f"the download's SHA-256 is {found}, which is not what the hub names it by")
        for file in (
            *incoming.glob("*/refs/**/*"),
            blob(path),
            path,
        ):  # the snapshot's link last: it is what is looked for
            if file.is_symlink() or file.is_file():
                target = cache / file.relative_to(incoming)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
        shutil.rmtree(incoming)
    return cache / path.relative_to(incoming)


def is_damaged(path: Path) -> bool:
    """Whether a file of the hub's cache is not what its name says: the cache names each by the hub's digest of it.

    A large file's is its SHA-256, a small one's git's SHA-1, or its own where a mirror answers so. Files elsewhere have no such name.
    """
    file = blob(path)
    if file.parent.name != "blobs" or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", file.name):
        return False
    if len(file.name) == 64:
        return sha256(path) != file.name
    data = path.read_bytes()
    digests = (hashlib.sha1(head + data, usedforsecurity=False) for head in (b"blob %d\0" % len(data), b""))
    return file.name not in {digest.hexdigest() for digest in digests}


def blob(path: Path) -> Path:
    """What a snapshot's entry leads to, by one step: blobs may lead on to a store of several repositories."""
    return path.parent / path.readlink() if path.is_symlink() else path
