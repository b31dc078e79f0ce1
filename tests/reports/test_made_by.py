"""Every table and figure of reports/ names the script or command that makes it, and there is such a one."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer

from headscope.cli.app import app
from headscope.recipe.__main__ import app as recipe
from tests.reports.scripts import REPORTS, functions

# Labels are written by hand; the rest is text and scripts.
BY_HAND = {".md", ".py", ".jsonl"}
ROW = re.compile(r"^\| (?P<files>`[^|]*) \| (?P<maker>`[^|]*) \|$", re.MULTILINE)
QUOTED = re.compile(r"`([^`]+)`")


def made_by(readme: Path) -> Iterator[tuple[str, str]]:
    """(pattern of a file, command) of the tables `| file | made by |` of a README."""
    for table in re.findall(r"^\| file \| made by \|\n(?:\|.*\|\n)+", readme.read_text(encoding="utf-8"), re.MULTILINE):
        for row in ROW.finditer(table):
            files = QUOTED.findall(re.sub(r"\([^)]*\)", "", row["files"]))
            yield from ((file, QUOTED.findall(row["maker"])[0]) for file in files)


def verbs(of: typer.Typer, before: str = "") -> Iterator[str]:
    """`trace`, `bench decode` ...: all commands of an app."""
    for command in of.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")  # type: ignore[union-attr]
        yield f"{before}{name}"
    for group in of.registered_groups:
        yield from verbs(group.typer_instance, f"{before}{group.name} ")


def left_by_a_tool(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


FOLDERS = sorted(path.parent for path in REPORTS.glob("*/README.md"))


def test_every_folder_has_a_page() -> None:
    folders = {path.name for path in REPORTS.iterdir() if path.is_dir() and not left_by_a_tool(path.name)}
    assert folders == {path.name for path in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_each_file_has_one_maker(folder: Path) -> None:
    makers = list(made_by(folder / "README.md"))
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    names = sorted(str(path) for path in files if path.suffix not in BY_HAND and not any(map(left_by_a_tool, path.parts)))
    told = {name: [maker for pattern, maker in makers if fnmatch(name, pattern)] for name in names}
    assert {name: found for name, found in told.items() if len(found) != 1} == {}
    assert [pattern for pattern, _ in makers if not any(fnmatch(name, pattern) for name in names)] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_each_maker_is_there(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    ours, recipes = set(verbs(app)), set(verbs(recipe))
    for _, maker in made_by(folder / "README.md"):
        words = maker.split()
        if maker.startswith("python -m headscope.recipe "):
            assert words[3] in recipes, maker
        elif words[0] == "python":
            source = (REPORTS.parent / words[1]).read_text(encoding="utf-8")
            assert words[1] in source, f"{words[1]} does not say how it is called"
            known = inspect.signature(functions(monkeypatch, words[1].removeprefix("reports/")).main).parameters
            assert {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")} <= set(known)
        else:
            assert words[0] == "headscope", maker
            assert words[1] in ours or " ".join(words[1:3]) in ours, maker


def test_every_script_makes_something() -> None:
    parts = {"bench_setup", "presses"}  # of scripts
    scripts = {str(path.relative_to(REPORTS.parent)) for path in REPORTS.rglob("*.py") if path.stem not in parts}
    makers = {maker.split()[1] for folder in FOLDERS for _, maker in made_by(folder / "README.md")}
    assert scripts <= makers


@pytest.mark.parametrize("path", sorted(REPORTS.rglob("*.py")), ids=lambda path: path.name)
def test_a_script_uses_the_faces_of_rooms_only(path: Path) -> None:
    names = [node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    assert [name for name in names if name.startswith("headscope.") and name.count(".") > 1] == []
