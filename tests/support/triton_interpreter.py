"""Triton's interpreter, made to multiply bf16: its dot takes the bit patterns that it keeps bf16 in for numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def multiply_bf16() -> None:
    """Have `tl.dot` of bf16 widen its operands to fp32 first, as the interpreter itself does with eight bits."""
    plain = interpreter.InterpreterBuilder.create_dot
    if getattr(plain, "takes_bf16", False):
        return

    def widen(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        bits = interpreter._convert_float(operand.data, tl.bfloat16, tl.float32, None)
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        return plain(self, widen(a), widen(b), d, *options)

    create_dot.takes_bf16 = True  # type: ignore[attr-defined]
    interpreter.InterpreterBuilder.create_dot = create_dot
