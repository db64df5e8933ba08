"""Write a bundle of CSM-1B's shapes with random weights: what a load run on a GPU needs, without the hub.

    python tests/bench/bundle_csm_1b.py FOLDER [PART…] [--device cuda]

Shapes are those of the bundle `csm-1b`: its bundle.toml, with other sources. The generator is written in bf16,
as the public file is not but as a GPU serves it (3.3 GB). Mimi is moshi's own default, the one of the public
checkpoint; the watermark's nets have the public 44.1 kHz shape. The text tokenizer is a small BPE learned from
the sentences that `csm bench` speaks, so that their prompts are about as many rows long as Llama's would make them.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

import models as bundles
from gateway.cli.bench.texts import sentences
from models.bundle import Bundle, load_bundle
from training.noise import text_tokenizer

PARTS = ("tokenizer", "mimi", "watermark", "generator")
_SEED = 5
_VOCABULARY = 4096
_SOURCES = "\n[[generator.source]]"  # where in a bundle.toml the shapes end


def write_toml(folder: Path) -> Bundle:
    """The bundle.toml, and the bundle that it describes."""
    home = Path(bundles.__file__).parent
    shapes = (home / "csm-1b/bundle.toml").read_text().split(_SOURCES)[0]
    options = f"[watermark]\nmessage_sdr_db = {load_bundle('csm-1b').watermark.options['message_sdr_db']}\n"
    shapes = shapes[shapes.index("sample_rate_hz") :]
    identity = 'id = "csm-1b-random"\ndescription = "CSM-1B\'s shapes with random weights: noise, for load runs"\ntrained = false\n'
    sources, voices = (home / "noise/bundle.toml").read_text().split(_SOURCES)[1].split("\n[[voice]]", 1)
    sources = sources.replace('config = "mimi/config.json"\n', "")  # moshi's default, as for the public file
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"bundle.toml.{os.getpid()}"  # parts may be written by several processes
    draft.write_text(f"{identity}{shapes}{_SOURCES}{sources}\n{options}\n[[voice]]{voices}")
    draft.replace(folder / "bundle.toml")
    return load_bundle(str(folder))


def write_tokenizer(bundle: Bundle, device: torch.device) -> None:
    """A byte-level BPE that cuts text as Llama 3's does, with control tokens at its end."""
    tokenizer = Tokenizer(BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(text_tokenizer._PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=_VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in text_tokenizer._CONTROL])
    tokenizer.save(str(bundle.folder / "tokenizer.json"))


@torch.inference_mode()
def write_mimi(bundle: Bundle, device: torch.device) -> None:
    """Mimi at full size, whose random frames are loud and do not clip: silence would be left unmarked."""
    from moshi.models import loaders
    from safetensors.torch import save_file

    from training.noise import mimi_weights

    model = loaders.get_mimi(None, None, num_codebooks=bundle.codebooks)
    random = torch.Generator().manual_seed(_SEED)
    mimi_weights._draw(model, random)
    for quantizer in (model.quantizer.rvq_first, model.quantizer.rvq_rest):
        for layer in quantizer.vq.layers:
            codebook = layer._codebook
            codebook.embedding_sum.normal_(std=bundle.codebooks**-0.5, generator=random)
            codebook.cluster_usage.fill_(1)
            codebook._initialized.fill_(1)
            codebook._embedding = None
    mimi_weights._level(model, random)
    (bundle.folder / "mimi").mkdir(exist_ok=True)
    save_file(model.state_dict(), bundle.folder / "mimi/model.safetensors")


def write_watermark(bundle: Bundle, device: torch.device) -> None:
    """Untrained nets: they mark, and cost what trained ones do; nothing can read their mark."""
    from services.watermark.hparams import Hparams
    from services.watermark.weights import write_random

    write_random(bundle.folder / "watermark", Hparams(), _SEED)


@torch.inference_mode()
def write_generator(bundle: Bundle, device: torch.device) -> None:
    """1.6 billion weights, made on the device."""
    from baselines import random_model

    from services.backbone.weights import save_sesame

    save_sesame(random_model(bundle.generator, device, torch.bfloat16), bundle.folder / "generator")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}")
    bundle = write_toml(args.folder)
    for part in args.parts or PARTS:
        globals()[f"write_{part}"](bundle, torch.device(args.device))
        print(f"{part} written", flush=True)


if __name__ == "__main__":
    main()
