"""What runs a policy needs torch, transformers, safetensors and numpy, and nothing else that headscope depends on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from headscope.benchmarks.gpu.context import Context

ROOT = Path(__file__).resolve().parents[1]
# What searches, classifies, reports or reads a command line; and what these bring. Not jinja2: torch itself asks for it, and
# transformers fills in chat templates with it.
OTHERS = (
    *("optuna", "pydantic", "pandas", "pyarrow", "sklearn", "scipy", "seaborn", "matplotlib", "typer", "rich", "PIL"),
    *("joblib", "sqlalchemy"),
)
# What a search needs, and a machine that only measures may lack; and modules of Python that Windows lacks. Others ask for them
# only where they are, so our own imports are what counts.
SEARCHES = ("optuna", "pydantic")
POSIX_ONLY = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog")
BLOCK = f"import sys\nsys.modules.update(dict.fromkeys({OTHERS}))\n"  # importing None is an ImportError

RUNS_A_POLICY = """
import headscope
from headscope import CompressedCache
from headscope.models.cache_name import cache_name

model = headscope.load_model("stickers")
policy = headscope.load_policy("stickers-20", model.shape)
samples = headscope.generate(model, ["red apple, noto style"], 7, policy=policy)
assert samples.tokens.shape == (1, 256)

network, prompt = model.network, model.tokenize(["red apple, noto style"])
with headscope.compressed(network, policy):
    text = network.generate(
        input_ids=prompt.ids,
        attention_mask=prompt.mask,
        generation_mode="text",
        max_new_tokens=3,
        **{cache_name(): CompressedCache(policy)},
    )
assert text.shape == (1, prompt.ids.shape[1] + 3)
"""

RUNS_THE_DECODE_BENCHMARK = """
from headscope.benchmarks.decoding import bench_decode

table, by_row = bench_decode("tiny", ("float32",), (1,), rows=1, device="cpu")
assert len(table) and len(by_row)
"""


def lacking(names: tuple[str, ...]) -> str:
    """Code after which headscope's own modules can't import these; others may, as typer does with pydantic."""
    return f"""
import builtins

plain = builtins.__import__

def importing(name, globals=None, *rest):
    ours = str((globals or dict()).get("__name__")).split(".")[0] == "headscope"
    if ours and name.split(".")[0] in {names}:
        raise ModuleNotFoundError(name)
    return plain(name, globals, *rest)

builtins.__import__ = importing
"""


def command(*words: str) -> str:
    """Code that runs the `headscope` command."""
    return f"import sys, headscope\nfrom headscope.cli import main\nsys.argv = {['headscope', *words]}\nmain()"


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own, in which headscope is this checkout's."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path})


def test_what_runs_a_policy_needs_nothing_but_the_core() -> None:
    ended = python(BLOCK + RUNS_A_POLICY)
    assert ended.returncode == 0, ended.stderr


def test_the_decode_benchmark_needs_nothing_but_the_core() -> None:
    ended = python(BLOCK + RUNS_THE_DECODE_BENCHMARK)
    assert ended.returncode == 0, ended.stderr


def test_a_blocked_package_can_not_be_imported() -> None:
    ended = python(BLOCK + "import headscope\nheadscope.TraceDataset")
    assert "import of pandas halted" in ended.stderr


def test_import_and_help_need_nothing_that_only_posix_has() -> None:
    ended = python(lacking(POSIX_ONLY) + command("--help"))
    assert ended.returncode == 0, ended.stderr
    assert "generate" in ended.stdout


def test_bench_needs_nothing_that_only_a_search_needs() -> None:
    ended = python(lacking(SEARCHES) + command("bench", "decode", "--help"))
    assert ended.returncode == 0, ended.stderr
    assert "--budget" in ended.stdout


def test_a_step_of_the_gpu_benchmark_needs_neither(tmp_path: Path) -> None:
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({SEARCHES}))\n"
    context = Context("tokens", tmp_path, "dry", "float32", "cpu", 1, dry=True)
    run = "from headscope.benchmarks.gpu.__main__ import main\nraise SystemExit(main(sys.argv[1]))"
    ended = python(blocked + f"sys.argv[1:] = [{context.written()!r}]\n" + run)
    assert ended.returncode == 0, ended.stderr
    assert "llama_cuda" in (tmp_path / "results.jsonl").read_text(encoding="utf-8")


def test_a_search_needs_them() -> None:
    assert "pydantic" in python(lacking(SEARCHES) + command("search", "--help")).stderr
