"""Turn a file named by a bundle into a path on this disk. Knows no torch.

A bundle names either a local file (relative to its folder) or a file of a hub repository at a
pinned revision. Hub files come from the local cache when they are there, and are downloaded otherwise
unless the hub is offline. Every failure is one PartError that says what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class ModelError(Exception):
    """A bundle, a part of it or a device for it cannot be used. The message is one line that says what to do."""


class PartError(ModelError):
    """A part of a bundle cannot be used. The message names part, file and remedy on one line."""

    def __init__(self, part: str, file: str, reason: str, remedy: str):
        super().__init__(f"{part}: {file}: {reason}; {remedy}")
        self.part, self.file, self.reason, self.remedy = part, file, reason, remedy


@dataclass(frozen=True)
class FileRef:
    """One file of one part.

    part: `generator`, `text_tokenizer`, `mimi` or `watermark`, used in error messages.
    name: path relative to `folder`, or inside the hub repository when `repo` is set.
    """

    part: str
    name: str
    folder: Path
    repo: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}:{self.name}" if self.repo else str(self.folder / self.name)

    def resolve(self) -> Path:
        """The file's path on this disk.

        Raises: PartError when it is absent, gated, damaged on the way, or the hub cannot be reached.
        """
        if self.repo is None:
            path = self.folder / self.name
            if not path.is_file():
                hint = (
                    "run 'python -m training.noise.build'"
                    if self.folder.name == "noise"
                    else "put the file there or correct bundle.toml"
                )
                raise PartError(self.part, str(self), "no such file", hint)
            return path
        return self._from_hub(self.repo)

    def _from_hub(self, repo: str) -> Path:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        from models.hub import DamagedDownload, download

        cached = try_to_load_from_cache(repo, self.name, revision=self.revision)
        if isinstance(cached, str):
            return Path(cached)
        try:
            return download(repo, self.name, self.revision)
        except DamagedDownload as error:
            raise PartError(
                self.part,
                str(self),
                str(error),
                "try again; when it stays so, something on the way changes it (a proxy?)",
            ) from error
        except GatedRepoError as error:
            raise PartError(
                self.part,
                str(self),
                "the repository is gated",
                f"accept its licence on the hub, then set HF_TOKEN to a token that may read {repo}",
            ) from error
        except RepositoryNotFoundError as error:
            raise PartError(
                self.part,
                str(self),
                "the repository was not found or is private",
                "check the name, and set HF_TOKEN if it needs one",
            ) from error
        except RevisionNotFoundError as error:
            raise PartError(
                self.part, str(self), f"no revision {self.revision}", "correct revision in bundle.toml"
            ) from error
        except LocalEntryNotFoundError as error:  # an EntryNotFoundError and an OSError, too
            raise self._not_at_hand(repo) from error
        except EntryNotFoundError as error:
            raise PartError(self.part, str(self), "the repository has no such file", "correct bundle.toml") from error
        except (HfHubHTTPError, OSError) as error:
            raise self._not_at_hand(repo) from error

    def _not_at_hand(self, repo: str) -> PartError:
        return PartError(
            self.part,
            str(self),
            "not in the local cache and the hub cannot be reached",
            f"run 'hf download {repo} {self.name}' where there is a network and mount that cache, "
            "or point CSM_MODEL at a folder that holds the file",
        )


def first_available(part: str, candidates: list[list[FileRef]]) -> tuple[int, list[Path]]:
    """The first candidate whose files are all at hand: (its index, its paths).

    Raises: PartError that lists why every candidate was passed over.
    """
    failures: list[PartError] = []
    for index, refs in enumerate(candidates):
        try:
            return index, [ref.resolve() for ref in refs]
        except PartError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    raise PartError(
        part,
        " or ".join(error.file for error in failures),
        "none of the places this part can come from has it: " + ", ".join(error.reason for error in failures),
        failures[0].remedy,
    )
