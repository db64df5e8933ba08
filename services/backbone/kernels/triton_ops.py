"""The operations of reference.py as Triton kernels: one launch each, two where the context is split."""

from services.backbone.kernels.aligned_attention import aligned_attend
from services.backbone.kernels.attention import attend, rope_write
from services.backbone.kernels.elementwise import add_norm, embed_frames, silu_mul
from services.backbone.kernels.matmul import linear_add, linear_gated, norm_gated, norm_linear
from services.backbone.kernels.row_product import (
    compile_deferring,
    defers_norms,
    empty_parts,
    linear_add_scaled,
    linear_scaled,
)
from services.backbone.kernels.sampling import sample
from services.backbone.kernels.split_matmul import linear, linear_parts
from services.backbone.kernels.step_attention import step_attend

__all__ = [
    "add_norm", "aligned_attend", "attend", "compile_deferring", "defers_norms", "embed_frames", "empty_parts", "linear", "linear_add", "linear_add_scaled", "linear_gated",
    "linear_parts", "linear_scaled", "norm_gated", "norm_linear",
    "rope_write", "sample", "silu_mul", "step_attend",
]  # fmt: skip
