"""The project keeps its own rules: no pickle, exact versions, a wheel with everything in it, no options in messages."""

from __future__ import annotations

import ast
import re
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.sources import PACKAGE, ROOT, SOURCES

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


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
    bundled = {f"headscope/bundled/{file}" for file in ("stickers/config.json", "stickers-classes/llamagen.json")}
    assert {*bundled, "headscope/py.typed"} <= carried
    assert not any(name.startswith("headscope/recipe") for name in carried)


def test_the_notice_credits_every_icon_set_by_its_version() -> None:
    from headscope.recipe.icons import SETS

    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert all(f"{icon_set.package} {icon_set.version}" in notice for icon_set in SETS)
    assert "https://creativecommons.org/licenses/by/4.0/" in notice


def options_named(source: str) -> list[str]:
    """Texts, docstrings and commands in backticks aside, that name an option of the command line."""
    tree = ast.parse(source)
    told = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, DOCUMENTED)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    plain = {text: re.sub(r"`(headscope|pip) [^`]*`", "", text) for text in texts if "pip install" not in text}
    named = [text for text, rest in plain.items() if text not in told and re.search(r"(?<![\w(-])--[a-z]{2}", rest)]
    made = [part.value for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values[:-1]
            if isinstance(part, ast.Constant) and str(part.value).endswith("--")]  # fmt: skip
    return named + made


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def test_lower_floors_name_arguments_and_no_options() -> None:
    below = [path for path in SOURCES if path.relative_to(PACKAGE).parts[0] not in ("cli", "recipe")]
    assert {path.name: found for path in below if (found := options_named(path.read_text(encoding="utf-8")))} == {}


def test_an_option_in_a_message_is_found() -> None:
    assert options_named('raise ValueError(f"{x}: choose another --out.")') == [": choose another --out."]
    assert options_named('f"({x}: --{name})"') == [": --"]
    assert options_named('"""With --out."""\nx = "a -- b"') == []
