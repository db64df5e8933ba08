"""The operations of plain.py as kernels, each one launch but for a split context. Imports Triton."""

from services.backbone.kernels.aligned import aligned_attend
from services.backbone.kernels.attention import attend, rope_write
from services.backbone.kernels.plain import pack
from services.backbone.kernels.products import linear_add, linear_gated, norm_gated, norm_linear
from services.backbone.kernels.rows import add_norm, embed_frames, silu_mul
from services.backbone.kernels.sampling import sample
from services.backbone.kernels.step import step_attend

__all__ = [
    "add_norm", "aligned_attend", "attend", "embed_frames", "linear_add", "linear_gated", "norm_gated", "norm_linear", "pack",
    "rope_write", "sample", "silu_mul", "step_attend",
]  # fmt: skip
