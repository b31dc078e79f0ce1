"""The project keeps its own rules: floors, no pickle, short files, exact versions, a wheel with everything in it."""

from __future__ import annotations

import ast
import graphlib
import re
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "headscope"
SOURCES = sorted(PACKAGE.rglob("*.py"))

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
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


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


def pickling(source: str) -> list[str]:
    """Sentences about what would read or write pickled objects."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [f"line {node.lineno}: imports {name}" for name in names if name.split(".")[0] in PICKLES]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called, settings = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            unsafe = called == "torch.load" and settings.get("weights_only") != "True"
            if unsafe or called == "torch.save" or settings.get("allow_pickle") == "True" or called.endswith("_pickle"):
                found.append(f"line {node.lineno}: {called}")
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_pickled_and_no_file_is_long(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert pickling(text) == []
    assert len(text.splitlines()) <= 500


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import dump",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(x, path)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
    ],
)
def test_a_pickle_is_found(source: str) -> None:
    assert len(pickling(source)) == 1


def test_loading_weights_only_is_no_pickle() -> None:
    assert pickling("torch.load(path, weights_only=True)\nnp.load(path)") == []


@pytest.mark.parametrize(
    "name",
    [
        *("pyproject.toml", "requirements.lock", "Makefile", "README.md", "CHANGELOG.md", "CITATION.cff"),
        *("LICENSE", "NOTICE", ".ci/run", ".gitignore"),
    ],
)
def test_the_project_has_its_papers(name: str) -> None:
    assert (ROOT / name).stat().st_size > 0


def test_ci_runs_the_tests_through_make() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text(encoding="utf-8")


def locked() -> dict[str, str]:
    """Package -> version; a line of the lock is `name==version`, and the system that has a package which not all have."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pin = re.compile(r'([A-Za-z0-9_.-]+)==([A-Za-z0-9.]+)(; sys_platform == "linux")?')
    pins = [pin.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(pins), [line for line, pin in zip(lines[1:], pins, strict=False) if not pin]
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def test_the_lock_names_exact_versions_and_torch_by_its_plain_number() -> None:
    assert locked()["torch"] == "2.13.0"


@pytest.mark.parametrize("extra", [None, "recipe", "dev"])
def test_the_lock_holds_what_the_project_asks_for(extra: str | None) -> None:
    wanted = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    pins = locked()
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)


def test_the_lock_holds_what_its_packages_ask_for_in_turn() -> None:
    pins, missing = locked(), []
    for name, version in pins.items():
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        if name == "torch" or installed.version != version:  # what torch asks for depends on its build (CPU, CUDA)
            continue
        asked = [Requirement(text) for text in installed.requires or []]
        needed = [r for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})]
        missing += [f"{name} needs {r.name}" for r in needed if canonicalize_name(r.name) not in pins]
    assert missing == []


def test_the_oldest_environment_has_the_lower_bound_of_every_dependency_but_torch() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (oldest,) = re.findall(r"^OLDEST := ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    pins = {canonicalize_name(name): version for name, version in re.findall(r"(\S+)==(\S+)", oldest)}
    bounds = {}
    for requirement in map(Requirement, PROJECT["dependencies"]):
        (bound,) = requirement.specifier
        assert bound.operator == ">=", str(requirement)
        bounds[canonicalize_name(requirement.name)] = bound.version
    del bounds["torch"]
    assert {name: Version(version) for name, version in pins.items()} == {n: Version(v) for n, v in bounds.items()}


def test_the_project_names_one_version_and_says_that_it_is_typed() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_the_lock_holds_triton_so_that_its_tests_are_not_skipped() -> None:
    assert "triton" in locked()


def test_the_project_asks_for_what_the_design_says() -> None:
    wanted = {requirement.name: str(requirement.specifier) for requirement in map(Requirement, PROJECT["dependencies"])}
    assert (wanted["torch"], wanted["transformers"]) == (">=2.9", ">=5.5")
    assert PROJECT["requires-python"] == ">=3.11"
    assert PROJECT["scripts"]["headscope"] == "headscope.cli:main"
    assert {"eval", "text", "ray", "dev"} <= set(PROJECT["optional-dependencies"])


def test_the_wheel_carries_every_file_of_the_package(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    wheel = next(iter(builder.build(directory=str(tmp_path), versions=["standard"])))
    carried = set(zipfile.ZipFile(wheel).namelist())
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and not {"__pycache__", "recipe"} & set(path.parts)}
    wanted = {str(path.relative_to(ROOT)) for path in files if not path.name.startswith(".")}
    assert wanted <= carried
    assert {"headscope/bundled/stickers/config.json", "headscope/py.typed"} <= carried
    assert not any(name.startswith("headscope/recipe") for name in carried)


def test_the_notice_credits_every_icon_set_by_its_version() -> None:
    from headscope.recipe.icons import SETS

    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert all(f"{icon_set.package} {icon_set.version}" in notice for icon_set in SETS)
    assert "https://creativecommons.org/licenses/by/4.0/" in notice


def too_much(source: str, name: str) -> list[str]:
    """Sentences about a file that is long without saying why, and its functions that are long or take too much."""
    lines, found = len(source.splitlines()), []
    tree = ast.parse(source)
    if lines > 300 and "Long, because" not in (ast.get_docstring(tree) or ""):
        found.append(f"{name}: {lines} lines, and no reason said")
    upper = name.split("/")[0] in ("pipeline", "tuning", "cli")
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            if upper and length > 60:
                found.append(f"{name}: {node.name} has {length} lines")
            given = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len([one for one in given if one not in ("self", "cls")])
            if count > 8 and not node.name.startswith("_") and (name, node.name) not in MIRRORS:
                found.append(f"{name}: {node.name} takes {count} parameters")
    return found


# Functions whose parameters mirror something: options of a command are a configuration's knobs, `uniform` is a policy's fields,
# and a kernel takes the pointers and strides of its tensors.
MIRRORS = {
    *(("cli/bench.py", "trace"), ("cli/budget.py", "budget"), ("cli/evaluate.py", "evaluate")),
    *(("cli/generate.py", "generate"), ("cli/heads.py", "heads"), ("cli/run.py", "run")),
    *(("cli/search.py", "search"), ("cli/trace.py", "trace"), ("policy/policy.py", "uniform")),
    *(("runtime/decoders/triton_kernels.py", name) for name in ("attend", "combine", "choose")),
}


def test_files_and_functions_are_short() -> None:
    sources = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in SOURCES}
    shipped = {name: source for name, source in sources.items() if not name.startswith("recipe/")}
    assert [sentence for name, source in shipped.items() for sentence in too_much(source, name)] == []


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


def options_named(source: str) -> list[str]:
    """Texts, docstrings and commands in backticks aside, that name an option of the command line."""
    tree = ast.parse(source)
    told = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, DOCUMENTED)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    plain = {text: re.sub(r"`(headscope|pip) [^`]*`", "", text) for text in texts if "pip install" not in text}
    return [text for text, rest in plain.items() if text not in told and re.search(r"(?<![\w(-])--[a-z]{2}", rest)]


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def test_lower_floors_name_arguments_and_no_options() -> None:
    below = [path for path in SOURCES if path.relative_to(PACKAGE).parts[0] not in ("cli", "recipe")]
    assert {path.name: found for path in below if (found := options_named(path.read_text(encoding="utf-8")))} == {}


def test_an_option_in_a_message_is_found() -> None:
    assert options_named('raise ValueError(f"{x}: choose another --out.")') == [": choose another --out."]
    assert options_named('"""With --out."""\nx = "a -- b"') == []
