"""Every variant draws from the same prompts and seeds, and a stop loses no image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headscope.errors import DataError
from headscope.models.janus import JanusModel
from headscope.policy import CacheSpec, Policy
from headscope.runtime import generate
from headscope.runtime.batches import FIRST_SEED, ImageBatches, Variant, batch_for, batches_to_generate, seconds_of
from tests.evaluation.conftest import PROMPTS


def test_every_variant_draws_what_generate_draws(tiny: JanusModel, half: Policy, tmp_path: Path) -> None:
    generated = ImageBatches(tiny, Variant("half", half), PROMPTS, 2, tmp_path / "half").all(4)
    assert generated.prompts == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2 + [PROMPTS[2]] * 2
    alone = generate(tiny, generated.prompts, [FIRST_SEED + n for n in range(6)], policy=half)
    assert torch.equal(generated.tokens, alone.tokens)


def test_images_that_stand_are_not_drawn_again(
    tiny: JanusModel, half: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ImageBatches(tiny, Variant("full"), PROMPTS, 2, tmp_path / "a").all(4)

    def stop(task: str, done: int, total: int, note: str = "") -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageBatches(tiny, Variant("full"), PROMPTS, 2, tmp_path / "b").all(2, progress=stop)
    before = {path.name: path.read_bytes() for path in (tmp_path / "b").glob("*.parquet")}
    assert len(before) == 1
    stood = [int(Path(name).stem) + place for name in before for place in range(2)]
    asked: list[int] = []

    def counted(*arguments: object, **options: object) -> object:
        asked.extend(arguments[2])  # type: ignore[arg-type]
        return generate(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("headscope.runtime.batches.generate", counted)
    again = ImageBatches(tiny, Variant("full"), PROMPTS, 2, tmp_path / "b").all(3)  # another batch size
    assert torch.equal(again.tokens, whole.tokens)
    assert sorted(asked) == [FIRST_SEED + n for n in range(6) if n not in stood]
    assert all((tmp_path / "b" / name).read_bytes() == content for name, content in before.items())


def test_batches_are_what_a_folder_lacks(tiny: JanusModel, tmp_path: Path) -> None:
    assert batches_to_generate(tmp_path / "none", 7, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    some = ImageBatches(tiny, Variant("full"), PROMPTS, 3, tmp_path / "some")
    some.generate([2, 3])
    assert batches_to_generate(tmp_path / "some", 9, 3) == [[0, 1], [4, 5, 6], [7, 8]]
    for numbers in batches_to_generate(tmp_path / "some", 9, 3):
        some.generate(numbers)
    assert batches_to_generate(tmp_path / "some", 9, 3) == []
    whole = ImageBatches(tiny, Variant("full"), PROMPTS, 3, tmp_path / "whole").all(9)
    assert torch.equal(some.all(9).tokens, whole.tokens)
    assert 0 < seconds_of(tmp_path / "some") < 60


def test_a_batch_fits_its_memory(tiny: JanusModel, half: Policy) -> None:
    variants = [Variant("full"), Variant("half", half)]
    one = Variant("full").cache_bytes(tiny, 10, 2)
    assert batch_for(tiny, variants, 10, 2, 5 * one + 1) == 5
    assert batch_for(tiny, variants, 10, 2, 10**12) == 64
    assert Variant("half", half).cache_bytes(tiny, 10, 2) == CacheSpec(half.shape, 10, dtype="float32").bytes_of(half)
    with pytest.raises(DataError, match="hold no cache of one"):
        batch_for(tiny, variants, 10, 2, one - 1)
