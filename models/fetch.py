"""`python -m models.fetch FOLDER`: put the files of bundle CSM_MODEL where the services will look for them.

A bundle that ships with its weights (`embedded`) is copied to FOLDER/<name>; services then run with
CSM_MODEL=FOLDER/<name>. Files of the hub go to the hub's own cache (HF_HOME), at the revisions that the
bundle names; services then run with the same HF_HOME and HF_HUB_OFFLINE=1. With CSM_WEIGHTS_URL all of it comes
from an object store instead, to the same places; `--publish URL` fills one.

Run again, it does only what is missing: what is there is held to its digest, and a damaged file is fetched again.
Of several at once in one FOLDER, such as the pods of a node, one works and the others wait. Knows no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import filecmp
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from models import store
from models.bundle import Bundle, known_bundles, load_bundle
from models.files import ModelError, PartError


def fetch(bundle: Bundle, folder: Path) -> list[Path]:
    """The bundle's files, all at hand now. Raises: PartError when one cannot be had or moves under its name."""
    for part, source in _sources(bundle):
        # A branch's name means other files tomorrow; replicas started on two days would disagree.
        if "repo" in source and not re.fullmatch(r"[0-9a-f]{40}", source.get("revision", "")):
            raise PartError(
                part,
                source["repo"],
                f"revision {source.get('revision')!r} is not a commit",
                "name a commit of 40 hex digits in bundle.toml",
            )
    paths = _resolve(bundle)
    if damaged := [path for path in paths if _is_damaged(path)]:
        for path in damaged:
            for file in {path.resolve(), _blob(path)}:
                file.unlink(missing_ok=True)
        paths = _resolve(bundle)
    home = bundle.folder.resolve()
    name = next((name for name, place in known_bundles().items() if place == home), home.name)
    local = [path for path in paths if path.resolve().is_relative_to(home)]
    if not local:
        return paths
    copied = [_copy(path.resolve(), folder / name / path.resolve().relative_to(home)) for path in local]
    # Last: where there is a bundle.toml, every file that it names is there.
    copied.append(_copy(home / "bundle.toml", folder / name / "bundle.toml"))
    return [path for path in paths if path not in local] + copied


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold folder alone, among all processes of this node. The lock ends with the process, however it ends.

    Some network file systems have no locks: there one Job fills the folder, and goes on without.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"models.fetch: another process fills {folder}, waiting", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            print(f"models.fetch: {folder} has no locks ({error.strerror}), going on without", flush=True)
        yield


def _resolve(bundle: Bundle) -> list[Path]:
    _, config, weights = bundle.generator.resolve()
    paths = [*weights, *([config] if config else [])]
    for part in ("text_tokenizer", "mimi", "watermark"):
        paths.extend(getattr(bundle, part).resolve().values())
    return paths


def _is_damaged(path: Path) -> bool:
    """Whether a file of the hub's cache is not what its name says: the cache names each by the hub's digest of it.

    A large file's is its SHA-256, a small one's git's SHA-1, or its own where a mirror answers so. Files elsewhere have no such name.
    """
    blob = _blob(path)
    if blob.parent.name != "blobs" or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return False
    if len(blob.name) == 64:
        return store.sha256(path) != blob.name
    data = path.read_bytes()
    digests = (hashlib.sha1(head + data, usedforsecurity=False) for head in (b"blob %d\0" % len(data), b""))
    return blob.name not in {digest.hexdigest() for digest in digests}


def _blob(path: Path) -> Path:
    """What a snapshot's entry leads to, by one step: blobs may lead on to a store of several repositories."""
    return path.parent / path.readlink() if path.is_symlink() else path


def _sources(bundle: Bundle) -> Iterator[tuple[str, dict[str, str]]]:
    for part in ("generator", "text_tokenizer", "mimi", "watermark"):
        for source in getattr(bundle, part).sources:
            yield part, source


def _copy(source: Path, target: Path) -> Path:
    """Copy unless it is there already; a file half written never bears the name."""
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(source, partial)
    partial.replace(target)
    return target


def _names(paths: list[Path], folder: Path) -> dict[str, Path]:
    """Path in the folder that services mount → file. The hub's cache is FOLDER/hub there, wherever it is here."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = {}
    for path in paths:
        inside = path.relative_to(folder) if path.is_relative_to(folder) else "hub/hub" / path.relative_to(HF_HUB_CACHE)
        found[inside.as_posix()] = path
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.fetch", description="Fetch the bundle that CSM_MODEL names."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what the services mount")
    parser.add_argument("--publish", metavar="URL", help="and upload them to an object store (s3://…, gs://…)")
    options = parser.parse_args(arguments)
    folder: Path = options.folder.absolute()
    os.environ.setdefault("HF_HOME", str(folder / "hub"))  # before huggingface_hub is imported
    url = os.environ.get("CSM_WEIGHTS_URL", "")
    try:
        with locked(folder):
            if url:
                paths, what = store.download(url, folder, pinned=os.environ.get("CSM_WEIGHTS_SHA256", "")), url
            else:
                bundle = load_bundle()
                paths, what = fetch(bundle, folder), bundle.id
            total = sum(path.stat().st_size for path in paths)
            print(f"{what}: {len(paths)} files, {total / 1e6:.1f} MB at hand under {folder}")
            if options.publish:
                digest = store.publish(_names(paths, folder), options.publish)
                print(f"{what}: published at {options.publish}, CSM_WEIGHTS_SHA256={digest}")
    except (ModelError, OSError) as error:
        sys.exit(f"models.fetch: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
