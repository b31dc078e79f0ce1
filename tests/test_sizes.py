"""Files and functions are short, or say why they are not."""

from __future__ import annotations

import ast

import pytest

from tests.sources import PACKAGE, ROOT, SOURCES, TESTS


def too_long(source: str, name: str) -> list[str]:
    """A sentence about a file that is long without saying why."""
    lines, said = len(source.splitlines()), ast.get_docstring(ast.parse(source)) or ""
    return [f"{name}: {lines} lines, and no reason said"] if lines > 300 and "Long, because" not in said else []


def too_much(source: str, name: str) -> list[str]:
    """Sentences about a file that is long without saying why, and its functions that are long or take too much."""
    found = too_long(source, name)
    upper = name.split("/")[0] in ("pipeline", "tuning", "cli")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            if upper and length > 60:
                found.append(f"{name}: {node.name} has {length} lines")
            given = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len([one for one in given if one not in ("self", "cls")])
            if count > 8 and not node.name.startswith("_") and (name, node.name) not in MIRRORS:
                found.append(f"{name}: {node.name} takes {count} parameters")
    return found


# Functions whose parameters mirror something: options of a command are a configuration's knobs, `uniform`, `fit` and `fit_near`
# take a policy's fields, and a kernel takes the pointers and strides of its tensors.
MIRRORS = {
    *(("cli/bench.py", "trace"), ("cli/budget.py", "budget"), ("cli/evaluate.py", "evaluate")),
    *(("cli/generate.py", "generate"), ("cli/heads.py", "heads"), ("cli/run.py", "run")),
    *(("cli/search.py", "search"), ("cli/trace.py", "trace"), ("policy/policy.py", "uniform"), ("policy/project.py", "fit")),
    ("cli/transfer.py", "transfer"),
    ("tuning/propose/sizes.py", "fit_near"),
    *(("cli/decode.py", "decode"), ("cli/decode_gpu.py", "measure")),
    *(("runtime/decoders/kernels/attention.py", name) for name in ("receive", "looked", "attend", "combine")),
    *(("runtime/decoders/kernels/choice.py", "choose"), ("runtime/decoders/kernels/sampling.py", "draw")),
    *(("runtime/decoders/kernels/sampling.py", "settle"), ("runtime/decoders/kernels/worth.py", "weigh")),
}


def test_files_and_functions_are_short() -> None:
    found = []
    for path in (*SOURCES, *TESTS):
        inside = str(path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT))
        rule = too_long if inside.startswith(("recipe/", "tests/")) else too_much
        found += rule(path.read_text(encoding="utf-8"), inside)
    assert found == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("geometry.py", "x = 1\n" * 301),
        ("tuning/search.py", "def search():\n" + "    x = 1\n" * 60),
        ("tracing/trace.py", "def trace(a, b, c, d, e, f, g, h, i): ..."),
    ],
)
def test_what_is_too_much_is_found(name: str, source: str) -> None:
    assert len(too_much(source, name)) == 1


def test_a_long_file_may_say_why() -> None:
    assert len(too_long("x = 1\n" * 301, "tests/test_long.py")) == 1
    assert too_long('"""A table.\n\nLong, because it lists all.\n"""\n' + "x = 1\n" * 301, "tests/test_long.py") == []
