"""`python -m models.fetch FOLDER`: put the files of bundle CSM_MODEL where the services will look for them.

A bundle that ships with its weights (`embedded`) is copied to FOLDER/<name>; services then run with
CSM_MODEL=FOLDER/<name>. With CSM_MODEL=FOLDER/<version>/<name> it is copied there, and that is the services' setting too:
each version has a folder of its own, in which files of another are refused, so that what runs keeps its own.
Files of the hub go to the hub's own cache (HF_HOME), at the revisions that the bundle names; services then run with
the same HF_HOME and HF_HUB_OFFLINE=1. With CSM_WEIGHTS_URL all of it comes from an object store instead, to the same
places; `--publish URL` fills one.

Run again, it does only what is missing: what is there is held to its digest, and a damaged file is fetched again.
Of several at once in one FOLDER, such as the pods of a node, one works and the others wait. Knows no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import filecmp
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from models import hub, store
from models.bundle import Bundle, known_bundles, load_bundle
from models.files import ModelError, PartError


def fetch(bundle: Bundle, folder: Path, *, one_version: bool = False) -> list[Path]:
    """The bundle's files, all at hand now; those that come with it in folder/<name>.

    one_version: folder is for one version of them: what is there of another one stays.
    Raises: PartError when a file cannot be had or moves under its name, StoreError by one_version.
    """
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
    if damaged := [path for path in paths if hub.is_damaged(path)]:
        for path in damaged:
            for file in {path.resolve(), hub.blob(path)}:
                file.unlink(missing_ok=True)
        paths = _resolve(bundle)
    home = bundle.folder.resolve()
    name = next((name for name, place in known_bundles().items() if place == home), home.name)
    local = [path for path in paths if path.resolve().is_relative_to(home)]
    if not local:
        return paths
    # Last: where there is a bundle.toml, every file that it names is there.
    local.append(home / "bundle.toml")
    targets = {path: folder / name / path.resolve().relative_to(home) for path in local}
    if one_version:
        sums = store.sums_of({target.relative_to(folder).as_posix(): path for path, target in targets.items()})
        store.check_version(folder, sums)
    copied = [_copy(path.resolve(), target) for path, target in targets.items()]
    if one_version:
        (folder / store.SUMS).write_bytes(sums)
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


def _destination(folder: Path) -> tuple[str, Path]:
    """(bundle by CSM_MODEL, the folder that its own files go below): FOLDER, or FOLDER/<version> where it names one."""
    model = os.environ.get("CSM_MODEL") or "embedded"
    if (place := Path(model)).is_relative_to(folder) and place != folder and ".." not in place.parts:
        return place.name, place.parent
    return model, folder


def _names(paths: list[Path], folder: Path) -> dict[str, Path]:
    """Path below the folder of `_destination` → file. The hub's cache is FOLDER/hub, wherever it is here."""
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
    model, place = _destination(folder)
    try:
        with locked(folder):
            if url:
                pinned = os.environ.get("CSM_WEIGHTS_SHA256", "")
                paths, what = store.download(url, folder, place, pinned=pinned), url
            else:
                bundle = load_bundle(model)
                paths, what = fetch(bundle, place, one_version=place != folder), bundle.id
            total = sum(path.stat().st_size for path in paths)
            print(f"{what}: {len(paths)} files, {total / 1e6:.1f} MB at hand under {folder}")
            if options.publish:
                digest = store.publish(_names(paths, place), options.publish)
                print(f"{what}: published at {options.publish}, CSM_WEIGHTS_SHA256={digest}")
    except (ModelError, OSError) as error:
        sys.exit(f"models.fetch: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
