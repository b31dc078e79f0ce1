"""Mutants of recorded images and of a sensitivity table: of use, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from headscope.errors import DataError
from headscope.models import Samples
from headscope.models.janus import JanusModel
from headscope.runtime import generate
from headscope.tracing.trace import images_hash
from headscope.tuning.measure.options import COLUMNS, Option
from headscope.tuning.measure.replay import Replay
from headscope.tuning.measure.sensitivity import load_table, measure_sensitivity, table_identity
from tests.fuzz.mutants import all_survive, mutated_bytes, mutated_parquet

OPTIONS = [Option(1), Option(2, 2, 0.85)]


@pytest.fixture(scope="module")
def samples(tiny: JanusModel) -> Samples:
    return generate(tiny, ["red apple", "dog", "a blue car on a red background"], 0)


@pytest.fixture(scope="module")
def replay(tiny: JanusModel, samples: Samples) -> Replay:
    return Replay(tiny, samples)


def seen(file: Path) -> Samples:
    """What every reader of recorded images does first."""
    found = Samples.load(file)
    images_hash(found)
    found.select(range(len(found)))
    assert found.tokens.dtype == torch.int32
    assert found.tokens.ndim == 2
    assert len(found.texts) == len(found.seeds) == len(found.tokens) == len(found)
    assert all(isinstance(text, str) for text in (*found.prompts, *found.texts, found.model, found.weights))
    found.save(file.with_name("again.parquet"))
    return found


@pytest.mark.parametrize("mutated", [mutated_bytes, mutated_parquet])
def test_a_mutant_of_recorded_images_is_one_sentence_or_of_use(samples: Samples, tmp_path: Path, mutated: Callable) -> None:
    good = samples.save(tmp_path / "good.parquet").read_bytes()
    all_survive(mutated, good, tmp_path / "samples.parquet", seen)


@pytest.fixture(scope="module")
def measured(replay: Replay, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("table") / "sensitivity.parquet"
    measure_sensitivity(replay, OPTIONS, file)
    return file.read_bytes()


def went_on(file: Path, replay: Replay) -> pd.DataFrame:
    """What a search does with a table: it goes on with it. What it lacks takes a moment to measure, so nothing is."""
    table = load_table(file, table_identity(replay, 1))
    measure_sensitivity(replay, [], file)
    assert list(table.columns) == COLUMNS
    assert table.notna().all().all()
    return table


@pytest.mark.parametrize("mutated", [mutated_bytes, mutated_parquet])
def test_a_mutant_of_a_sensitivity_table_is_one_sentence_or_of_use(
    replay: Replay, measured: bytes, tmp_path: Path, mutated: Callable
) -> None:
    all_survive(mutated, measured, tmp_path / "sensitivity.parquet", partial(went_on, replay=replay))


@pytest.mark.parametrize(("column", "value"), [("loss", float("nan")), ("loss", float("inf")), ("layer", 2), ("kv_head", -1)])
def test_a_row_that_no_measurement_gives_is_refused(
    replay: Replay, measured: bytes, tmp_path: Path, column: str, value: float
) -> None:
    file = tmp_path / "sensitivity.parquet"
    file.write_bytes(measured)
    table = pq.read_table(file)
    cells = [value, *table[column].to_pylist()[1:]]
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(cells, table[column].type)), file)
    with pytest.raises(DataError, match=f"{column} {value:g}"):
        measure_sensitivity(replay, [], file)
