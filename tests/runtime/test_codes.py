"""What the kernels' assembly makes of codes: its instructions, followed one by one, read numbers back as the CPU does.

Triton's interpreter knows no assembly, so on a CPU kernels read codes another way; here the text itself is taken.
"""

from __future__ import annotations

import inspect
import re
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

pytest.importorskip("triton")

from headscope.runtime.decoders.kernels import codes
from headscope.runtime.quantized import dequantize, quantize

WORD = 0xFFFFFFFF


def halves(word: int) -> np.ndarray:
    return np.frombuffer(struct.pack("<I", word), dtype=np.float16)


def word_of(values: np.ndarray) -> int:
    return struct.unpack("<I", values.astype(np.float16).tobytes())[0]


def prmt(a: int, b: int, chosen: int) -> int:
    """PTX's prmt.b32: each byte of the result is one of the eight of a and b."""
    given_bytes = struct.pack("<II", a, b)
    return int.from_bytes(bytes(given_bytes[chosen >> 4 * place & 7] for place in range(4)), "little")


def fma(a: int, b: int, c: int) -> int:
    wide = halves(a).astype(np.float64) * halves(b).astype(np.float64) + halves(c).astype(np.float64)
    return word_of(wide)


INSTRUCTIONS = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "shr.u32": lambda a, b: a >> b,
    "prmt.b32": prmt,
    "add.f16x2": lambda a, b: word_of(halves(a) + halves(b)),
    "fma.rn.f16x2": fma,
}


def run(kernel: object, inputs: list[int], outputs: int) -> list[int]:
    """The output registers after the assembly of a kernel, whose inputs come after its outputs."""
    source = inspect.getsource(kernel.fn)  # type: ignore[attr-defined]
    text = re.search(r'inline_asm_elementwise\(\s*"+\{?(.*?)\}?"+,\s*"=r', source, re.DOTALL).group(1)  # type: ignore[union-attr]
    registers = {f"${outputs + number}": word for number, word in enumerate(inputs)}
    for line in (part.strip() for part in text.split(";")):
        if not line or line.startswith(".reg"):
            continue
        name, rest = line.split(None, 1)
        target, *given_names = [part.strip() for part in rest.split(",")]
        values = [registers[one] if one in registers else int(one, 0) for one in given_names]
        registers[target] = INSTRUCTIONS[name](*values) & WORD  # type: ignore[operator]
    return [registers[f"${number}"] for number in range(outputs)]


@given(st.lists(st.integers(0, 255), min_size=4, max_size=4))
def test_eight_bits_lie_above_1024(four: list[int]) -> None:
    found = run(codes.halves_above, [int.from_bytes(bytes(four), "little")], 2)
    assert [float(x) for word in found for x in halves(word)] == [1024 + code for code in four]


@given(st.lists(st.floats(-50, 50, width=16), min_size=96, max_size=96), st.lists(st.integers(0, 47), min_size=4, max_size=4))
@settings(max_examples=40, deadline=None)
def test_four_bits_are_read_back_whatever_bytes_stand_together(numbers: list[float], places: list[int]) -> None:
    """Four bytes of any groups: how a thread's lie depends on the head's size."""
    packed, scale, zero = quantize(torch.tensor([numbers]), 4)
    expected = dequantize(packed, scale, zero, 96, torch.float32)[0]
    word = int.from_bytes(bytes(int(packed[0, place]) for place in places), "little")
    steps = [word_of(np.array([scale[0, place // 16], zero[0, place // 16]])) for place in places]
    found = [float(x) for word in run(codes.halves_of_four, [word, *steps], 4) for x in halves(word)]
    wanted = [float(expected[2 * place + half]) for half in (0, 1) for place in places]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
