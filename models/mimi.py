"""Load moshi's Mimi for the two stages that use it: the tokenizer encodes, the codec decodes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from moshi.models import MimiModel, loaders
from moshi.modules import SEANetEncoder
from moshi.modules.transformer import ProjectedTransformer
from moshi.utils.compile import no_compile
from torch import Tensor

from models.bundle import Bundle
from models.checkpoint import fill, read_safetensors
from models.files import PartError

# On a GPU moshi compiles parts of its transformer at their first use, in the middle of a request and with a
# compiler that may be missing. Its switch is per process and not thread-safe, so it is entered once and stays on.
_never_compile = no_compile()
_never_compile.__enter__()

# Names that older checkpoints give to the buffers of a codebook; moshi's own loader takes both.
_OLD_NAMES = {
    "inited": "_initialized",
    "cluster_size": "cluster_usage",
    "embed_avg": "embedding_sum",
    "embed_sum": "embedding_sum",
}


def load_mimi(bundle: Bundle, device: torch.device | str = "cpu") -> MimiModel:
    """Mimi in eval mode, fp32, with the bundle's number of codebooks switched on (moshi's default is 8).

    Raises: PartError when files are missing, damaged, or of another shape than the bundle says, or when
        the device is not there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PartError(
            "mimi", f"device {device}", "cannot be used here", "use cpu, or cuda where there is a GPU"
        ) from error
    # torch lets convolutions on a GPU round to TF32: fp32 as here promised, and streamed equal to
    # one-shot, need all the bits.
    torch.backends.cudnn.allow_tf32 = False
    files = bundle.mimi.resolve()
    config: dict[str, Any] = loaders._mimi_config
    config_file = "moshi's default config"
    if "config" in files:
        config_file = str(files["config"])
        try:
            config = json.loads(files["config"].read_text())
        except (OSError, ValueError) as error:
            raise PartError("mimi", config_file, f"not JSON ({error})", "fetch it again") from error
    try:
        available = config["quantizer"]["n_q"]
        if available < bundle.codebooks:
            raise PartError(
                "mimi", config_file, f"has {available} codebooks, the bundle says {bundle.codebooks}",
                "correct bundle.toml",
            )  # fmt: skip
        with torch.device("meta"):
            model = mimi_of(config, bundle.codebooks, "meta")
    except (KeyError, TypeError, AssertionError) as error:
        raise PartError("mimi", config_file, f"unusable ({error!r})", "correct it") from error
    weights = str(files["weights"])
    fill(
        model,
        _renamed(read_safetensors("mimi", [files["weights"]], device)),
        part="mimi",
        source=weights,
        dtype=torch.float32,
    )
    stated = (bundle.sample_rate_hz, bundle.frame_rate_hz, bundle.codec_bins)
    actual = (model.sample_rate, model.frame_rate, model.cardinality)
    if actual != stated:
        words = "{} Hz, {} frames/s and {} bins"
        raise PartError(
            "mimi",
            weights,
            f"has {words.format(*actual)}, the bundle says {words.format(*stated)}",
            "correct bundle.toml",
        )
    return model


def mimi_of(config: dict[str, Any], codebooks: int, device: torch.device | str = "cpu") -> MimiModel:
    """An unfilled Mimi. Beside moshi's own keys the config may have `encoder`: what differs in the encoder from `seanet` and
    `transformer`, which moshi builds encoder and decoder alike from.

    Raises: KeyError, TypeError or AssertionError where the config does not describe a Mimi.
    """
    model = loaders.get_mimi(None, config, device=device, num_codebooks=codebooks)
    if own := config.get("encoder"):
        model.encoder = SEANetEncoder(**config["seanet"] | own["seanet"]).to(device)
        model.encoder_transformer = ProjectedTransformer(device=device, **config["transformer"] | own["transformer"])
        model.eval()
    return model


def _renamed(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        owner, _, leaf = name.rpartition(".")
        if owner.endswith("._codebook"):
            leaf = _OLD_NAMES.get(leaf, leaf)
        yield f"{owner}.{leaf}", tensor
