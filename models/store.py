"""Weights in an object store: `SHA256SUMS` and the files it names, below one URL that fsspec takes. Knows no torch.

SHA256SUMS is what sha256sum writes and checks, with paths as they lie in the folder that the services mount. It is
published last, so a set without it is not there yet. Its own digest pins the whole set (CSM_WEIGHTS_SHA256).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Any

from models.files import ModelError

SUMS = "SHA256SUMS"


class StoreError(ModelError):
    """The object store, or what lies there, cannot be used."""


def publish(files: dict[str, Path], url: str) -> str:
    """Upload files, path in the folder → file here, then their SHA256SUMS. Returns its digest, 64 hex digits.

    Raises: StoreError.
    """
    store, root = _open(url)
    sums = sums_of(files)
    try:
        for name, path in sorted(files.items()):
            store.makedirs(f"{root}/{PurePosixPath(name).parent}", exist_ok=True)
            store.put_file(str(path), f"{root}/{name}")
        store.pipe_file(f"{root}/{SUMS}", sums)
    except Exception as error:  # each object store has errors of its own
        raise StoreError(f"{url}: {type(error).__name__}: {error}") from error
    return hashlib.sha256(sums).hexdigest()


def download(url: str, folder: Path, place: Path | None = None, *, pinned: str = "") -> list[Path]:
    """Make folder hold what was published at url: download what is missing or has another digest.

    place: what is not of the hub's cache goes below it, and nothing else may be there; None: below folder.
    pinned: digest that SHA256SUMS must have; empty for any. Raises: StoreError.
    """
    place = place or folder
    store, root = _open(url)
    try:
        sums: bytes = store.cat_file(f"{root}/{SUMS}")
    except FileNotFoundError as error:
        raise StoreError(f"{url}: no {SUMS}; publish the bundle there first") from error
    except Exception as error:
        raise StoreError(f"{url}: {type(error).__name__}: {error}") from error
    if pinned and hashlib.sha256(sums).hexdigest() != pinned.lower():
        raise StoreError(
            f"{url}/{SUMS}: its digest is {hashlib.sha256(sums).hexdigest()}, CSM_WEIGHTS_SHA256 says {pinned}"
        )
    if place != folder:
        check_version(place, sums)
    paths = []
    for name, wanted in read_sums(sums, f"{url}/{SUMS}").items():
        target = (folder if name.startswith("hub/") else place) / name
        if not target.is_file() or sha256(target) != wanted:
            _get(store, f"{root}/{name}", target, wanted)
        paths.append(target)
    place.mkdir(parents=True, exist_ok=True)
    (place / SUMS).write_bytes(sums)  # for people: sha256sum -c
    return paths


def sums_of(files: dict[str, Path]) -> bytes:
    """What SHA256SUMS says of files, path in the folder → file."""
    return "".join(f"{sha256(path)}  {name}\n" for name, path in sorted(files.items())).encode()


def check_version(place: Path, sums: bytes) -> None:
    """Raises: StoreError when the folder of one version holds another: pods that run may be reading it."""
    if (path := place / SUMS).is_file() and path.read_bytes() != sums:
        raise StoreError(
            f"{place} holds another version of these files; name a new folder in CSM_MODEL, or remove that one"
        )


def read_sums(text: bytes, place: str) -> dict[str, str]:
    """Path → SHA-256 in hex. place: for the message. Raises: StoreError when a line is not of sha256sum, or leads out."""
    found = {}
    for number, line in enumerate(text.decode(errors="replace").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *]([^\0]+)", line)
        name = PurePosixPath(match[2]) if match else None
        if match is None or name is None or not name.name or name.is_absolute() or ".." in name.parts:
            raise StoreError(f"{place}: line {number} is not '<sha256>  <path in the folder>'")
        found[str(name)] = match[1]
    if not found:
        raise StoreError(f"{place}: it names no file")
    return found


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _get(store: Any, source: str, target: Path, wanted: str) -> None:
    """Download; a file that is half there, or another one, never bears the name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    try:
        store.get_file(source, str(partial))
    except Exception as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"{source}: {type(error).__name__}: {error}") from error
    if (found := sha256(partial)) != wanted:
        partial.unlink()
        raise StoreError(f"{source}: its digest is {found}, {SUMS} says {wanted}; publish it again")
    partial.replace(target)


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        store, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise StoreError(f"{url}: {error}") from error
    return store, root.rstrip("/")
