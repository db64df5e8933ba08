"""Make the noise bundle: every part with random weights from a fixed seed.

    python -m training.noise.build            # makes the parts that are missing
    python -m training.noise.build --force    # makes all of them again, whatever was there

Shapes come from models/noise/bundle.toml; the parts go next to it. A part is made in a folder of its own and moved there whole, so
an interrupted build leaves no half of a part behind.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from models.bundle import Bundle, FilesPart, GeneratorPart, load_bundle
from models.files import PartError

# The makers import torch and the models when there is something to make, and not before.

SEED = 20240229


def build(bundle: Bundle, *, force: bool = False) -> list[str]:
    """Make the parts of `bundle` that lack a file (all with `force`) in its folder; the names of those made."""
    makers = {
        "tokenizer.json": (bundle.text_tokenizer, _make_tokenizer),
        "mimi": (bundle.mimi, _make_mimi),
        "generator": (bundle.generator, _make_generator),
        "watermark": (bundle.watermark, _make_watermark),
    }
    workshop = bundle.folder / f".build-{os.getpid()}"
    made = []
    try:
        for name, (part, make) in makers.items():
            if _is_there(part) and not force:
                continue
            workshop.mkdir(parents=True, exist_ok=True)
            make(bundle, workshop / name)
            _remove(bundle.folder / name)
            os.replace(workshop / name, bundle.folder / name)
            made.append(name)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return made


def _is_there(part: GeneratorPart | FilesPart) -> bool:
    try:
        part.resolve()
    except PartError:
        return False
    return True


def _make_tokenizer(bundle: Bundle, place: Path) -> None:
    from training.noise import text_tokenizer

    text_tokenizer.make(bundle, place)


def _make_mimi(bundle: Bundle, place: Path) -> None:
    from training.noise import mimi_weights

    mimi_weights.make(bundle, place, SEED)


def _make_generator(bundle: Bundle, place: Path) -> None:
    from services.backbone.model import build_model, init_random
    from services.backbone.weights import save_sesame

    save_sesame(init_random(build_model(bundle.generator), SEED), place)


def _make_watermark(bundle: Bundle, place: Path) -> None:
    from services.watermark.hparams import Hparams
    from services.watermark.weights import write_random

    # SilentCipher at the chain's own rate; 171 ms of look-ahead.
    shape = Hparams(
        sample_rate_hz=bundle.sample_rate_hz,
        n_fft=1024,
        hop_length=512,
        message_band_size=256,
        message_sdr_db=36.0,
    )
    write_random(place, shape, SEED)


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.noise.build", description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="make every part again, whatever was there")
    arguments = parser.parse_args()
    made = build(load_bundle("noise"), force=arguments.force)
    print("noise bundle: " + (f"made {', '.join(made)}" if made else "complete"))


if __name__ == "__main__":
    main()
