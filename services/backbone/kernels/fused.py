"""The operations of plain.py, each one kernel launch. Imports Triton."""

from services.backbone.kernels.attention import attend, rope_write
from services.backbone.kernels.rows import add_norm, embed_frames, silu_mul
from services.backbone.kernels.sampling import sample

__all__ = ["add_norm", "attend", "embed_frames", "rope_write", "sample", "silu_mul"]
