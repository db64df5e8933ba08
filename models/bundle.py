"""Read a bundle: its identity, its shapes, and the files each stage takes. Knows no torch.

Every service reads the same bundle and takes its own part; the gateway compares the
`identity` that each reports.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from models.files import FileRef, PartError, first_available

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class LlamaShape:
    """Shape of one Llama transformer (backbone or depth decoder)."""

    layers: int
    heads: int
    kv_heads: int
    dim: int
    intermediate_dim: int
    max_seq_len: int
    norm_eps: float = 1e-5
    rope_base: float = 500_000.0
    rope_scale_factor: float = 32.0


@dataclass(frozen=True)
class GeneratorPart:
    """The backbone service's part. audio_vocab_size counts the three values above the codec's bins."""

    text_vocab_size: int
    audio_vocab_size: int
    codebooks: int
    backbone: LlamaShape
    decoder: LlamaShape
    sources: tuple[dict[str, Any], ...]
    folder: Path

    def resolve(self) -> tuple[str, Path | None, list[Path]]:
        """(layout `sesame` or `transformers`, config.json if the layout has one, weight files).

        Raises: PartError when no source is at hand.
        """
        candidates = []
        for source in self.sources:
            names = ([source["config"]] if "config" in source else []) + list(source["weights"])
            candidates.append([_ref("generator", name, source, self.folder) for name in names])
        index, paths = first_available("generator", candidates)
        source = self.sources[index]
        if "config" in source:
            return source["layout"], paths[0], paths[1:]
        return source["layout"], None, paths


@dataclass(frozen=True)
class FilesPart:
    """A part that is one of several alternative sets of named files."""

    part: str
    sources: tuple[dict[str, Any], ...]
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)

    def resolve(self) -> dict[str, Path]:
        """Role (`weights`, `config`, `tokenizer`, `enc_c`, …) → path. Raises: PartError."""
        roles = [[key for key in source if key not in ("repo", "revision")] for source in self.sources]
        candidates = [
            [_ref(self.part, source[role], source, self.folder) for role in names]
            for source, names in zip(self.sources, roles, strict=True)
        ]
        index, paths = first_available(self.part, candidates)
        return dict(zip(roles[index], paths, strict=True))


@dataclass(frozen=True)
class Voice:
    """A speaker the bundle knows: the number that goes into the text template, and who it is."""

    speaker: int
    name: str
    description: str


@dataclass(frozen=True)
class Bundle:
    """One model bundle. `trained` is false for a bundle of random weights, which makes noise.

    languages: those it speaks, BCP 47 tags, the main one first.
    """

    id: str
    description: str
    trained: bool
    sample_rate_hz: int
    frame_rate_hz: float
    codebooks: int
    generator: GeneratorPart
    text_tokenizer: FilesPart
    mimi: FilesPart
    watermark: FilesPart
    voices: tuple[Voice, ...]
    folder: Path
    languages: tuple[str, ...] = ("en",)

    @property
    def samples_per_frame(self) -> int:
        return round(self.sample_rate_hz / self.frame_rate_hz)

    @property
    def is_embedded(self) -> bool:
        """True for the bundled model alone, not for a copy of it: what is granted to it is not inherited."""
        return self.folder.resolve() == known_bundles().get("embedded")

    @property
    def codec_bins(self) -> int:
        """Codes the codec knows; the generator's heads emit three values more."""
        return self.generator.audio_vocab_size - 3


def load_bundle(name: str | None = None) -> Bundle:
    """Read the bundle called `name` (default: CSM_MODEL, or `embedded`).

    name: `embedded`, `noise`, `csm-1b`, or a folder that holds a bundle.toml.
    Raises: PartError when there is no such bundle or its bundle.toml is unusable.
    """
    name = name or os.environ.get("CSM_MODEL") or "embedded"
    known = known_bundles()
    folder = known.get(name) or Path(name)
    path = folder / "bundle.toml"
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        if name == "embedded":
            raise PartError("bundle", name, "not installed", "pip install 'csm-serve[embedded]'") from error
        raise PartError(
            "bundle",
            str(path),
            "no such bundle",
            f"set CSM_MODEL to one of {', '.join(known)} or to a folder with a bundle.toml",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PartError("bundle", str(path), f"not TOML ({error})", "correct it") from error
    try:
        return _from_table(table, folder)
    except (KeyError, TypeError) as error:
        raise PartError("bundle", str(path), f"bad or missing key {error}", "correct it") from error


def known_bundles() -> dict[str, Path]:
    """Bundles by name: those in this folder, and installed ones (entry points `csm.bundles`: name = package)."""
    found = {path.parent.name: path.parent.resolve() for path in _HERE.glob("*/bundle.toml")}
    for point in entry_points(group="csm.bundles"):
        # The package is data alone; it is found, not imported.
        spec = find_spec(point.value)
        for place in spec.submodule_search_locations or () if spec else ():
            if Path(place, "bundle.toml").is_file():
                found.setdefault(point.name, Path(place).resolve())
    return dict(sorted(found.items()))


def _from_table(table: dict[str, Any], folder: Path) -> Bundle:
    generator = table["generator"]
    return Bundle(
        id=table["id"],
        description=table["description"],
        trained=table["trained"],
        languages=tuple(table.get("languages", ["en"])),
        sample_rate_hz=table["sample_rate_hz"],
        frame_rate_hz=table["frame_rate_hz"],
        codebooks=table["codebooks"],
        generator=GeneratorPart(
            text_vocab_size=generator["text_vocab_size"],
            audio_vocab_size=generator["audio_vocab_size"],
            codebooks=table["codebooks"],
            backbone=LlamaShape(**generator["backbone"]),
            decoder=LlamaShape(**generator["decoder"]),
            sources=tuple(generator["source"]),
            folder=folder,
        ),
        **{
            part: FilesPart(
                part=part,
                sources=tuple(table[part]["source"]),
                folder=folder,
                options={key: value for key, value in table[part].items() if key != "source"},
            )
            for part in ("text_tokenizer", "mimi", "watermark")
        },
        voices=tuple(Voice(**voice) for voice in table.get("voice", [])),
        folder=folder,
    )


def _ref(part: str, name: str, source: dict[str, Any], folder: Path) -> FileRef:
    return FileRef(part, name, folder, source.get("repo"), source.get("revision"))
