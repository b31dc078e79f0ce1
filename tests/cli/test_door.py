"""What a command makes of its surroundings: the shell's variables, pipes, encodings and widths, and the working folder."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from rich.table import Table

from headscope.cli.console import Output, default_out, pasted, settle_streams, short
from tests.cli.command import Ended, headscope, in_a_shell


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    return lambda *arguments: headscope(capsys, monkeypatch, *arguments)


@pytest.fixture(scope="module")
def traced(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models/tiny and, traced from there by this name, `my run`."""
    here = tmp_path_factory.mktemp("here")
    shutil.copytree(tiny_folder, here / "models" / "tiny")
    (here / "p.txt").write_text("red apple\ndog\nblue car\nred car\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        from headscope.cli.trace import trace

        trace("models/tiny", Path("my run"), Path("p.txt"))
    return here


@pytest.fixture
def run(traced: Path, tmp_path: Path) -> Path:
    """A copy beside nothing else, so that its model is where run.json says and nowhere else."""
    return shutil.copytree(traced / "my run", tmp_path / "my run")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: object, **named: object) -> None:
        raise AssertionError("a hub was asked")

    monkeypatch.setattr("headscope.models.hub.get_hf_file_metadata", asked)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", asked)


def refused(ended: Ended, *says: str) -> None:
    assert ended.status == 2, ended
    assert "error: " in ended.err
    assert all(part in ended.err for part in says), ended.err


def test_a_run_is_opened_from_another_folder(command, traced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads((traced / "my run" / "run.json").read_text())["model"]["source"] == str(traced / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    ended = command("heads", traced / "my run")
    assert ended.status == 0, ended.err
    assert ended.out.splitlines()[-2:] == [
        f"heads: {traced / 'my run' / 'heads.safetensors'}",
        f"next: headscope search '{traced / 'my run'}' --keep 20%",
    ]


def test_paths_are_as_short_as_they_were_typed_and_commands_can_be_pasted(
    command, traced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(traced)
    ended = command("heads", "my run")
    assert ended.out.splitlines()[-2:] == [
        "heads: my run/heads.safetensors", "next: headscope search 'my run' --keep 20%"
    ]  # fmt: skip
    found = command("search", "my run", "--keep", "60%", "--trials", 1, "--quick")
    assert found.out.splitlines()[-1] == (
        "next: headscope generate models/tiny --policy 'my run/policy.safetensors' --out images"
    )
    ended = command("trace", "models/tiny", "--out", "my run", "--prompts", "p.txt")
    refused(ended, "error: my run: holds a run of tiny already")


def named(run: Path, source: str) -> Path:
    """The run as an older headscope wrote it: with the model's folder as it was typed."""
    facts = json.loads((run / "run.json").read_text())
    facts["model"]["source"] = source
    (run / "run.json").write_text(json.dumps(facts))
    return run


def test_a_relative_name_of_before_counts_from_the_working_folder_or_from_above_the_run(
    command, run: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    named(run, "models/tiny")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    refused(command("heads", run), "models/tiny", "neither here nor above the run")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "other")
    shutil.copytree(tiny_folder, tmp_path / "models" / "tiny")
    assert command("heads", run).status == 0
    shutil.copytree(tmp_path / "models", run / "models")  # in the run itself, which counts from nowhere
    assert command("heads", run).status == 0
    deeper = shutil.move(run, tmp_path / "models" / "deep" / "run")
    shutil.copytree(tmp_path / "models" / "tiny", tmp_path / "models" / "deep" / "models" / "tiny")
    refused(command("heads", deeper), f" and {tmp_path / 'models' / 'tiny'};", "give the command from the folder")
    monkeypatch.chdir(tmp_path)
    assert command("heads", deeper).status == 0


def test_a_model_folder_that_is_gone_is_not_looked_for_on_a_hub(command, run: Path, tmp_path: Path, no_network: None) -> None:
    refused(command("heads", named(run, str(tmp_path / "gone"))), f"the model folder {tmp_path / 'gone'}, which is not there")


def test_a_name_that_looks_like_a_folder_is_looked_for_here_alone(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    refused(command("generate", "models/tiny", "dog"), f"looked for a folder of this name in {tmp_path}", "no tiny in it")
    refused(command("generate", "a/b/c", "dog"), "neither a known model nor a folder")
    refused(command("generate", "~/tiny", "dog"), "neither a known model nor a folder")


def test_a_hub_is_asked_once(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = []

    def asked(*arguments: object, **named: object) -> None:
        times.append(arguments)
        raise ConnectionError("nobody answers")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("headscope.models.hub.get_hf_file_metadata", asked)
    refused(command("generate", "somebody/model", "dog"), "somebody/model: no folder here", "nobody answers")
    assert len(times) == 1


def test_a_run_folder_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headscope.pipeline import RunFolder

    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("run"))
    monkeypatch.chdir("/")
    assert folder.trace == tmp_path / "run" / "trace"


def test_the_run_folder_of_a_model_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert [default_out(name) for name in (".", "../mine", "a/b", "stickers")] == [
        Path("runs") / name for name in ("mine", "mine", "b", "stickers")
    ]


@given(st.text("ab /'.~-é", min_size=1, max_size=9).filter(lambda name: not name.startswith("/")))
def test_what_is_pasted_is_the_same_words_and_shortened_paths_lead_to_the_same_place(name: str) -> None:
    path = f"{os.getcwd()}/{name}"
    assert shlex.split(pasted("headscope", "heads", path))[:2] == ["headscope", "heads"]
    found = shlex.split(pasted("headscope", path))[1]
    assert os.path.join(os.getcwd(), found) == path
    other = f"/elsewhere{path}"
    assert short(f"{other}: {path}").startswith(f"{other}: ")


def test_the_backend_of_a_notebook_is_neither_used_nor_changed_and_commands_take_their_own(tmp_path: Path) -> None:
    code = """
import os, sys
import numpy as np
import headscope.cli.generate, headscope.cli.trace, headscope.pipeline
from headscope.reporting import contact_sheet
contact_sheet([("dog", [np.zeros((9, 9, 3), np.uint8)])], [], "sheet.png")
print([name for name in ("matplotlib", "seaborn") if name in sys.modules], os.environ["MPLBACKEND"])
sys.argv = ["headscope", "--version"]
headscope.cli.main()
import matplotlib
print(matplotlib.get_backend())
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "module://no_such.backend", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    said = ended.stdout.splitlines()
    assert (said[0], said[-1].lower()) == ("[] module://no_such.backend", "agg"), ended.stderr


@pytest.mark.parametrize("words", ["--version", "--help"])
def test_a_reader_that_leaves_is_no_error(tmp_path: Path, words: str) -> None:
    # The reader has gone before the first word is written.
    ended = in_a_shell(f"(sleep .3; headscope {words}) | true", tmp_path)
    assert (ended.status, ended.err) == (0, "")


def test_a_command_says_what_it_can_in_ascii(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    assert headscope(capsys, monkeypatch, "heads", "grün-✓").status == 2
    assert stream.buffer.getvalue().startswith(rb"error: gr\xfcn-\u2713: no run.json here")  # type: ignore[attr-defined]


def test_what_a_stream_can_not_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    settle_streams()
    Output().print("grün \udcc3 ✓", markup=False)
    assert stream.buffer.getvalue().split() == [rb"gr\xfcn", rb"\udcc3", rb"\u2713"]  # type: ignore[attr-defined]


def wide() -> Table:
    table = Table(*(f"column {number}" for number in range(30)), box=None)
    table.add_row(*(f"a cell of words {number}" for number in range(30)))
    return table


def test_without_a_terminal_a_table_comes_whole_unless_columns_say_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    file = io.StringIO()
    Output(file=file).print(wide())
    assert [len(line.split()) for line in file.getvalue().splitlines()] == [2 * 30, 5 * 30]
    monkeypatch.setenv("COLUMNS", "60")
    file = io.StringIO()
    Output(file=file).print(wide())
    assert max(map(len, file.getvalue().splitlines())) <= 60


def test_an_error_of_the_system_is_told_as_it_is(command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: object) -> None:
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr("headscope.reporting.write_report", full)
    assert command("report", run).err == "error: /somewhere: No space left on device.\n"
