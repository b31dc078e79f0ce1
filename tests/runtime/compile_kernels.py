"""Compile every kernel for an H100/H200 without one: python -m tests.runtime.compile_kernels, TRITON_INTERPRET unset."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from headscope.runtime.decoders import triton_kernels as kernels

TARGET = GPUTarget("cuda", 90, 32)
MODEL = ("query", "new_key", "new_value", "keys", "values", "out")  # in the model's dtype
FLOATS = ("scores", "logits", "part_top", "part_sum", "part_out", "decays")
NUMBERS = ("slots", "score_slots", "step", "stride")


def compiled(kernel: Any, dtype: str, **constants: Any) -> None:
    signature = {}
    for parameter in kernel.params:
        name = parameter.name
        kinds = {
            **dict.fromkeys(MODEL, f"*{dtype}"),
            **dict.fromkeys(FLOATS, "*fp32"),
            **dict.fromkeys(NUMBERS, "i32"),
            "scale": "fp32",
        }
        signature[name] = "constexpr" if name in constants else kinds.get(name, "*i32")
    places = {(list(signature).index(name),): value for name, value in constants.items()}
    made = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=places), target=TARGET)
    assert made.asm["cubin"]
    print(kernel.fn.__name__, dtype, constants)


def main() -> None:
    for dtype, heads_of, size in (("bf16", 1, 128), ("bf16", 4, 128), ("fp32", 1, 64), ("fp16", 8, 96)):
        padded, wide = (1 if heads_of == 1 else 16), 64 if size == 64 else 128
        sizes = {"heads": 16, "heads_of": heads_of, "padded": padded, "size": size, "wide": wide, "block": 64}
        for splits in (1, 4):
            precision = "ieee" if dtype == "fp32" else "tf32"
            compiled(kernels.attend, dtype, **sizes, splits=splits, precision=precision)
        compiled(kernels.combine, dtype, **sizes, splits=4)
        compiled(kernels.choose, dtype, heads=16, heavies=8, size=size, wide=wide, most=256)


if __name__ == "__main__":
    main()
