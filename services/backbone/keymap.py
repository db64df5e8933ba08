"""Names and layouts of CSM's tensors: from the ones transformers publishes to Sesame's.

The two differ in names and in RoPE: torchtune rotates the interleaved pairs (2j, 2j + 1)
of a head, transformers rotates (j, j + hd / 2), so rows of q and k are permuted within each head.
The transformers files also hold the codec (`codec_model.*`, not ours) and may hold the audio
embeddings twice, as `depth_decoder.model.embed_tokens` is tied to the backbone's.
"""

from __future__ import annotations

import re

from torch import Tensor

from models.bundle import GeneratorPart

TIED = "depth_decoder.model.embed_tokens.weight"
_AUDIO_EMBEDDINGS = "backbone_model.embed_tokens.embed_audio_tokens.weight"
_FOREIGN = "codec_model."

# Sesame → transformers, the way a reader compares them
WHOLE = {
    "text_embeddings.weight": "embed_text_tokens.weight",
    "audio_embeddings.weight": _AUDIO_EMBEDDINGS,
    "projection.weight": "depth_decoder.model.inputs_embeds_projector.weight",
    "codebook0_head.weight": "lm_head.weight",
    "audio_head": "depth_decoder.codebooks_head.weight",
    "backbone.norm.scale": "backbone_model.norm.weight",
    "decoder.norm.scale": "depth_decoder.model.norm.weight",
}
STACKS = {"backbone": "backbone_model", "decoder": "depth_decoder.model"}
IN_LAYER = {
    "attn.q_proj.weight": "self_attn.q_proj.weight",
    "attn.k_proj.weight": "self_attn.k_proj.weight",
    "attn.v_proj.weight": "self_attn.v_proj.weight",
    "attn.output_proj.weight": "self_attn.o_proj.weight",
    "mlp.w1.weight": "mlp.gate_proj.weight",
    "mlp.w2.weight": "mlp.down_proj.weight",
    "mlp.w3.weight": "mlp.up_proj.weight",
    "sa_norm.scale": "input_layernorm.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
}
_WHOLE_BACK = {theirs: ours for ours, theirs in WHOLE.items()} | {TIED: "audio_embeddings.weight"}
_STACK_BACK = {theirs: ours for ours, theirs in STACKS.items()}
_IN_LAYER_BACK = {theirs: ours for ours, theirs in IN_LAYER.items()}
_LAYER = re.compile(r"(.+)\.layers\.(\d+)\.(.+)")


def from_transformers(name: str, tensor: Tensor, part: GeneratorPart) -> tuple[str, Tensor] | None:
    """transformers' tensor under Sesame's name and layout; None for tensors of the codec.

    Raises: KeyError on an unknown name.
    """
    if name.startswith(_FOREIGN):
        return None
    if name in _WHOLE_BACK:
        return _WHOLE_BACK[name], tensor
    stack, index, leaf = split_name(name)
    stack, leaf = _STACK_BACK[stack], _IN_LAYER_BACK[leaf]
    return f"{stack}.layers.{index}.{leaf}", permute(tensor, rope_heads(part, stack, leaf), to_halves=False)


def split_name(name: str) -> tuple[str, str, str]:
    match = _LAYER.fullmatch(name)
    if match is None:
        raise KeyError(name)
    return match[1], match[2], match[3]


def rope_heads(part: GeneratorPart, stack: str, leaf: str) -> int | None:
    """Heads of a tensor that RoPE rotates; None for the others."""
    shape = part.backbone if stack == "backbone" else part.decoder
    return {"attn.q_proj.weight": shape.heads, "attn.k_proj.weight": shape.kv_heads}.get(leaf)


def permute(tensor: Tensor, heads: int | None, *, to_halves: bool) -> Tensor:
    """Permute the rows of a q or k weight [heads * hd, D] between pairs and halves."""
    if heads is None or tensor.ndim != 2 or tensor.shape[0] % (2 * heads):
        return tensor  # a tensor of a wrong shape is refused when it is put in place
    split = (-1, 2) if to_halves else (2, -1)
    return tensor.unflatten(0, (heads, *split)).transpose(1, 2).flatten(0, 2).contiguous()
