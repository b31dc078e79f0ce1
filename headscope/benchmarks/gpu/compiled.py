"""Every kernel compiled for an H100/H200 without one, and what the compiler made of it; TRITON_INTERPRET has to be unset."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from headscope.runtime.decoders.flat_attention import kernel_sizes, power, wide_of
from headscope.runtime.decoders.kernels import attention, choice, layers, sampling

TARGET = GPUTarget("cuda", 90, 32)
# Parameters by what they are; the others are int32, or pointers to it where their name says a table.
MODEL = ("qkv", "cos_table", "sin_table", "keys", "values", "out", "x", "weight", "gate_up", "logits_in", "table")
FLOATS = ("scores", "logits", "part_top", "part_sum", "part_out", "decays", "floors", "tops", "worths")
NUMBERS = (
    *("batch", "prefix", "prefixes", "of_prefix", "front", "slots", "slots8", "slots4", "score_slots", "step", "stride"),
    *("size", "images", "codes", "ahead", "blocks", "top_k", "rank", "grid_rows"),
)
SCALARS = ("scale", "epsilon", "temperature", "largest")
WIDE = ("tokens", "failed")
CODES = {"codes8": "*u8", "codes4": "*u8"}
TABLE = {"scale": "*fp16", "rows": "*i8", "places": "*i8", "tokens": "i32"}  # of `choose`, as ScoreTable has them
ALIGNED = 16  # bytes that torch's tensors begin at
Shape = tuple[str, int, int, int, int]
# Of attention: dtype, query heads of a KV head, numbers of a head, slots of a tile, tiles loaded ahead.
SHAPES: tuple[Shape, ...] = (
    *(("bf16", 1, 128, block, 2) for block in (64, 32, 16)),
    *(("bf16", 1, size, 64, 2) for size in (24, 64, 96, 100)),
    *(("bf16", heads_of, 128, 64, 2) for heads_of in (4, 32)),
    ("bf16", 1, 256, 32, 2),
    ("fp32", 1, 64, 32, 2),
    ("fp32", 1, 256, 16, 2),
    ("fp16", 8, 96, 64, 2),
)
WARPS = {"floor_of": 8}


def compiled(kernel: Any, dtype: str, warps: int = 4, **constants: Any) -> Any:
    """A kernel for TARGET; integers that torch hands over are not known to be multiples of anything."""
    signature: dict[str, str] = {}
    for parameter in kernel.params:
        name = parameter.name
        kinds = {
            **dict.fromkeys(MODEL, f"*{dtype}"),
            **dict.fromkeys(FLOATS, "*fp32"),
            **dict.fromkeys(NUMBERS, "i32"),
            **dict.fromkeys(SCALARS, "fp32"),
            **dict.fromkeys(WIDE, "*i64"),
            **CODES,
        }
        if kernel.fn.__name__ in ("draw", "floor_of"):
            kinds["logits"] = f"*{dtype}"
        if kernel.fn.__name__ == "choose":
            kinds |= TABLE
        signature[name] = "constexpr" if name in constants else kinds.get(name, "*i32")
    names = list(signature)
    places = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(names.index(n),): [["tt.divisibility", ALIGNED]] for n, kind in signature.items() if kind.startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    return triton.compile(source, target=TARGET, options={"num_warps": warps})


def variants(shapes: tuple[Shape, ...]) -> Iterator[tuple[str, Any, str, dict[str, Any]]]:
    """Name, kernel, dtype and constants."""
    for dtype, heads_of, size, block, stages in shapes:
        for splits, eight, four in ((1, False, False), (4, False, False), (1, True, False), (1, False, True), (1, True, True)):
            if (eight or four) and (heads_of, dtype) not in ((1, "bf16"), (1, "fp32")):
                continue
            sizes = kernel_sizes(16, heads_of, size, block, splits)
            more = {"stages": stages, "eight": eight, "four": four, "exact": dtype == "fp32"}
            yield "attend", attention.attend, dtype, {**sizes, **more}
        yield "combine", attention.combine, dtype, kernel_sizes(16, heads_of, size, block, 4)
    for eight, four, scored in ((False, False, False), (True, True, False), (False, False, True), (True, True, True)):
        numbers = {"heads": 16, "heavies": 8, "size": 128, "wide": wide_of(128), "most": power(200)}
        yield "choose", choice.choose, "bf16", {**numbers, "eight": eight, "four": four, "scored": scored}
    yield "rms_norm", layers.rms_norm, "bf16", {"size": 2048, "wide": 2048}
    yield "silu_times_up", layers.silu_times_up, "bf16", {"block": 1024}
    yield "floor_of", sampling.floor_of, "bf16", {"wide": 16384, "guided": True}
    for greedy, limited in ((False, False), (False, True), (True, False)):
        yield "draw", sampling.draw, "bf16", {"block": 2048, "guided": True, "greedy": greedy, "limited": limited}
    yield "settle", sampling.settle, "bf16", {"wide_blocks": 8, "size": 2048, "wide": 2048, "streams": 2}


def measured(made: Any) -> dict[str, int]:
    """What ptxas made of it: instructions and barriers of the longest loop, registers, shared memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(made.asm["cubin"])
        tools = Path(triton.__file__).parent / "backends/nvidia/bin"
        text = subprocess.run([tools / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    loops = tiles(text)
    return {
        "instructions": max((len(loop) for loop in loops), default=0),
        "barriers": max((sum("BAR.SYNC" in line for line in loop) for loop in loops), default=0),
        "whole": sum(1 for line in text.splitlines() if re.search(r"/\*[0-9a-f]{4,}\*/\s", line)),
        "registers": int(re.search(r"REG:(\d+)", usage).group(1)),  # type: ignore[union-attr]
        "spilled": int(re.search(r"LOCAL:(\d+)", usage).group(1)),  # type: ignore[union-attr]
        "shared": int(made.metadata.shared),
    }


def tiles(text: str) -> list[list[str]]:
    """Instructions of every loop that takes products or loads: from a label to a branch back to it."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    found: list[list[str]] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label.group(1)] = len(lines)
        elif re.search(r"/\*[0-9a-f]{4,}\*/\s", line):
            lines.append(line)
            back = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if back and back.group(1) in labels:
                loop = lines[labels[back.group(1)] :]
                if any("MMA" in one or "LDG" in one for one in loop):
                    found.append(loop)
    return found


def table(few: bool = False) -> Iterator[dict[str, str | int]]:
    """A row a variant: what it is compiled for, instructions and barriers of its longest loop, all instructions, registers,
    bytes that went to local memory, and bytes of shared memory.

    Args:
        few: leave out all but the first shape.
    """
    for name, kernel, dtype, constants in variants(SHAPES[:1] if few else SHAPES):
        warps = WARPS.get(name, 4)
        said = " ".join(f"{key}={value}" for key, value in constants.items())
        found = measured(compiled(kernel, dtype, warps, **constants))
        yield {"kernel": name, "dtype": dtype, "warps": warps, "constants": said, **found}
