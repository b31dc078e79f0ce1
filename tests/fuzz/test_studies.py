"""Mutants of studies: opened and asked for what they hold, or one sentence."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from headscope.policy import make_preset
from headscope.tuning.config import SearchConfig
from headscope.tuning.measure.measurement import ReplayResult
from headscope.tuning.propose.class_space import ClassSpace
from headscope.tuning.propose.strides import fitting_strides
from headscope.tuning.study.phase import TrialBook
from headscope.tuning.study.storage import StudyStore, open_storage
from tests.fuzz.mutants import all_survive, mutated_bytes, mutated_json, mutated_text, nasty, seeds, survives
from tests.tuning.landscape import LIMIT, SCORES, SHAPE, Landscape

SPACE = ClassSpace(LIMIT, SCORES, fitting_strides(LIMIT))
POLICY = make_preset("streaming", LIMIT)


class Failing(Landscape):
    """Every third measurement fails."""

    def measure(self, policy: Any, watch: Any = None) -> ReplayResult:
        found = super().measure(policy, watch)
        if len(self.measured) % 3 == 0:
            raise RuntimeError("out of memory")
        return found


def book(path: Path, land: Landscape | None = None) -> TrialBook:
    return TrialBook(
        land or Landscape(),
        SHAPE,
        "classes",
        StudyStore(open_storage(path), path.name, identity={"seed": 1}),
        SearchConfig(),
        {},
    )


def made(path: Path) -> bytes:
    """A study with trials in every state."""
    begun = book(path, Failing())
    begun.incumbent("preset streaming", POLICY, SPACE, SPACE.locate(POLICY))
    for _ in range(5):
        begun.propose(SPACE)
    begun.study.ask({"left": SPACE.numbers[0].distribution()}).set_user_attr("worker", "another-machine:7:1:kernel/1")
    begun.study.enqueue_trial({"left": 0.5}, user_attrs={"retries": 1})
    return path.read_bytes()


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made(tmp_path_factory.mktemp("journal") / "good.journal")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("database") / "good.db"
    made(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(path.with_name("whole.db")),))  # in one file, without its log
    return path.with_name("whole.db").read_bytes()


def everything(path: Path) -> Any:
    """What a search that goes on asks of a study."""
    found = book(path)
    found.incumbent("preset streaming", POLICY, SPACE, None)
    found.best()
    found.unimproved()
    return found.sampled, len(found.table())


def one_line(data: bytes, rng: random.Random) -> bytes:
    """An event with another value somewhere in it."""
    lines = data.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    lines[place] = json.dumps(mutated_json(json.loads(lines[place]), rng)).encode() + b"\n"
    return b"".join(lines)


def one_result(data: bytes, rng: random.Random) -> bytes:
    """A result with another value somewhere in it, or in its policy."""
    lines = data.splitlines(keepends=True)
    place = rng.choice([number for number, line in enumerate(lines) if b'"result"' in line])
    event = json.loads(lines[place])
    attributes = event.get("user_attr") or event["user_attrs"]
    if rng.random() < 0.3:
        attributes["result"]["policy"] = mutated_text(attributes["result"]["policy"], rng)
    else:
        attributes["result"] = mutated_json(attributes["result"], rng)
    lines[place] = json.dumps(event).encode() + b"\n"
    return b"".join(lines)


@pytest.mark.parametrize(("mutated", "part"), [(mutated_bytes, 3), (one_line, 4), (one_result, 4)])
def test_a_mutant_of_a_journal_is_one_sentence_or_of_use(
    journal: bytes, tmp_path: Path, mutated: Callable[[bytes, random.Random], bytes], part: int
) -> None:
    all_survive(mutated, journal, tmp_path / "mutant.journal", everything, part)


def test_a_mutant_of_a_database_is_one_sentence_or_of_use(database: bytes, tmp_path: Path) -> None:
    all_survive(mutated_bytes, database, tmp_path / "mutant.db", everything, part=12)


CELLS = (
    ("trial_user_attributes", "value_json"),
    ("trial_system_attributes", "value_json"),
    ("study_user_attributes", "value_json"),
    ("trial_values", "value"),
    ("trial_values", "value_type"),
    ("trial_intermediate_values", "intermediate_value"),
    ("trial_params", "param_value"),
    ("trial_params", "distribution_json"),
    ("trials", "state"),
    ("trials", "number"),
    ("trials", "datetime_start"),
    ("studies", "study_name"),
    ("study_directions", "direction"),
    ("version_info", "schema_version"),
    ("alembic_version", "version_num"),
)


def test_a_cell_of_a_database_that_is_nasty_is_one_sentence_or_of_use(database: bytes, tmp_path: Path) -> None:
    for number, rng in seeds(part=12):
        path = tmp_path / f"{number}.db"
        path.write_bytes(database)
        table, column = CELLS[number % len(CELLS)]
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"UPDATE OR IGNORE {table} SET {column} = ?", (_cell(rng),))
        survives(lambda path=path: everything(path), f"{number}: {table}.{column}")  # type: ignore[misc]


def _cell(rng: random.Random) -> Any:
    value = nasty(rng)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = float(value)
    plain = value is None or isinstance(value, (int, float)) or (isinstance(value, str) and value.isprintable())
    return value if plain and rng.random() < 0.5 else json.dumps(value)
