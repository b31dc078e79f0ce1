"""Imports go down the floors, through the faces of rooms, and never in a circle."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator

import pytest

from tests.sources import PACKAGE, SOURCES, module_of

# Imports go down only. `recipe` stands apart: it may know everything, and nothing imports it.
FLOORS = {
    **dict.fromkeys(
        (
            "errors",
            "facts",
            "intervals",
            "lazy",
            "plugins",
            "progress",
            "prompt_files",
            "provenance",
            "reading",
            "storage",
            "words",
        ),
        -2,
    ),
    "geometry": -1,
    **dict.fromkeys(("policy", "overwriting", "run_folder", "samples", "bundled"), 0),
    "models": 1,
    **dict.fromkeys(("tracing", "runtime"), 2),
    **dict.fromkeys(("heads", "stickereval"), 3),
    **dict.fromkeys(("tuning", "evaluation"), 4),
    **dict.fromkeys(("benchmarks", "reporting"), 5),
    "pipeline": 6,
    **dict.fromkeys(("headscope", "__main__", "cli"), 7),
    "recipe": 8,
}
TOP = 7
LOWEST = -2
# The one neighbour on a floor, and the one part of a room, that may be known.
SIDEWAYS = {("run_folder", "policy"), ("run_folder", "overwriting"), ("overwriting", "policy")}
ONLY_PART = {("heads", "tracing"): "headscope.tracing.dataset"}


def room_of(module: str) -> str:
    """`headscope.tracing.hooks` -> tracing; `headscope` itself -> headscope."""
    return module.split(".")[1] if "." in module else module


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, full name) of every headscope module that is imported anywhere in a file, inside functions too."""
    here = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if room_name(alias.name))
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            if not room_name(base):
                continue
            for alias in node.names:  # `from headscope import policy` is the room, `from headscope import run` the top
                below = PACKAGE.joinpath(*base.split(".")[1:], alias.name)
                inner = below.is_dir() or below.with_suffix(".py").is_file()
                yield node.lineno, f"{base}.{alias.name}" if inner else base


def room_name(module: str) -> bool:
    return module == "headscope" or module.startswith("headscope.")


def misplaced(source: str, module: str, is_package: bool = False) -> list[str]:
    """Sentences about the imports of one file that go up or sideways."""
    room, found = room_of(module), []
    for line, name in imported(ast.parse(source), module, is_package):
        other = room_of(name)
        if other == room or (room, other) in SIDEWAYS or room == "recipe":
            continue
        up = FLOORS[other] > FLOORS[room] or other == "recipe"
        sideways = FLOORS[other] == FLOORS[room] and FLOORS[room] not in (TOP, LOWEST)
        wrong_part = (room, other) in ONLY_PART and name != ONLY_PART[room, other]
        if up or sideways or wrong_part:
            found.append(f"{module} line {line}: {room} imports {name}")
    return found


def test_every_room_stands_on_a_floor() -> None:
    rooms = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if path.name != "__init__.py"}
    rooms = {room for room in rooms if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()}
    assert rooms - {"__pycache__"} <= set(FLOORS)


def circle(sources: dict[str, str]) -> list[str]:
    """Modules, by name with their source, that import each other in a circle, inside functions too; empty without one."""

    def known(name: str) -> str:
        while name and name not in sources:
            name = name.rpartition(".")[0]
        return name

    graph = {}
    for module, source in sources.items():
        is_package = any(other.startswith(f"{module}.") for other in sources)
        names = {known(name) for _, name in imported(ast.parse(source), module, is_package)}
        graph[module] = names - {module, ""}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_imports_go_nowhere_in_a_circle() -> None:
    assert circle({module_of(path): path.read_text(encoding="utf-8") for path in SOURCES}) == []


def test_a_circle_is_found() -> None:
    here = {"headscope.a": "import headscope.b", "headscope.b": "def late():\n    from headscope.c import x"}
    assert circle({**here, "headscope.c": "from headscope.d import y", "headscope.d": ""}) == []
    assert set(circle({**here, "headscope.c": "import headscope.a"})) == {"headscope.a", "headscope.b", "headscope.c"}


# Who looks inside a room: the data set is all that `heads` knows of tracing, and benchmarks time the insides of a step.
INSIDE = {("heads", "tracing"), *(("benchmarks", room) for room in ("models", "runtime", "tracing")), ("cli", "benchmarks")}


def past_a_face(source: str, module: str) -> list[str]:
    """Sentences about imports from inside another room, which that room's face could hand on."""
    room, found = room_of(module), []
    for node in ast.walk(ast.parse(source)):
        name = (node.module or "") if isinstance(node, ast.ImportFrom) and node.level == 0 else ""
        other = room_of(name)
        inside = room_name(name) and name.count(".") > 1 and other != room
        if inside and room not in ("recipe", "headscope") and (room, other) not in INSIDE:
            found.append(f"{module}:{node.lineno}: {name}, which {other} does not hand on itself")
    return found


def test_rooms_are_entered_by_their_faces() -> None:
    each = {module_of(path): path.read_text(encoding="utf-8") for path in SOURCES}
    assert [sentence for module, source in each.items() for sentence in past_a_face(source, module)] == []


def test_an_import_past_a_face_is_found() -> None:
    assert len(past_a_face("from headscope.policy.policy import Policy", "headscope.runtime.cache")) == 1
    assert past_a_face("from headscope.policy import Policy", "headscope.runtime.cache") == []
    assert past_a_face("from headscope.runtime.buckets import HeavyHeads", "headscope.runtime.cache") == []


def test_imports_go_down_the_floors_only() -> None:
    found = [
        sentence
        for path in SOURCES
        for sentence in misplaced(path.read_text(encoding="utf-8"), module_of(path), path.name == "__init__.py")
    ]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("headscope.tracing.hooks", "from headscope.runtime import generate"),
        ("headscope.runtime.cache", "from headscope.tracing.dataset import TraceDataset"),
        ("headscope.geometry", "import headscope.policy.policy"),
        ("headscope.policy.files", "from headscope import models"),
        ("headscope.policy.files", "from headscope import run"),
        ("headscope.policy.files", "from ..models import load_model"),
        ("headscope.heads.features", "from headscope.tracing.hooks import attach"),
        ("headscope.tuning.search", "def late():\n    from headscope.evaluation import judge"),
        ("headscope.errors", "import headscope.geometry"),
        ("headscope.cli.run", "from headscope.recipe.presets import PRESETS"),
    ],
)
def test_an_import_upward_or_sideways_is_found(module: str, source: str) -> None:
    assert len(misplaced(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("headscope.policy.policy", "from headscope.geometry import Geometry"),
        ("headscope.heads.features", "from headscope.tracing.dataset import TraceDataset"),
        ("headscope.cli.run", "from headscope.pipeline import run"),
        ("headscope.runtime.cache", "from .buckets import Bucket\nfrom headscope import errors"),
        ("headscope.recipe.export", "from headscope.runtime import generate"),
    ],
)
def test_an_import_downward_is_allowed(module: str, source: str) -> None:
    assert misplaced(source, module) == []
