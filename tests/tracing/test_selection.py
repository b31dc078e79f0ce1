"""What is selected gives the numbers that it has in the whole; live tracing gives those of the parallel pass."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from transformers import StaticCache

from headscope.errors import DataError
from headscope.models import Samples
from headscope.models.janus import JanusModel
from headscope.policy.policy import Policy
from headscope.runtime import Sampling, generate
from headscope.tracing import Selection, register_statistic, trace, watch, watch_live
from headscope.tracing.accumulated import Accumulated
from headscope.tracing.catalogue import CURVES, STATISTICS

FULL = Selection(full=True)
SUMS = ("row_columns", "squares", "offsets", "offsets_image", "entropy", "best", "best_running")


@pytest.fixture(scope="module")
def samples(tiny: JanusModel) -> Samples:
    return generate(tiny, ["dog", "a blue car on a red background"], 5)


def close(found: Accumulated, expected: Accumulated) -> None:
    assert torch.equal(found.queries, expected.queries)
    assert torch.equal(found.prefix_seen, expected.prefix_seen)
    for name in SUMS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5, msg=name)


def test_bands_of_rows_add_up_to_the_whole(tiny: JanusModel, samples: Samples) -> None:
    whole, parts = watch(tiny, samples, FULL), watch(tiny, samples, Selection(full=True, band_count=3))
    for number in (0, 1):
        assert len(parts.layers[number].bands) == 3
        close(parts.layers[number].whole, whole.layers[number].whole)


def test_layers_and_heads_that_are_chosen_are_those_of_the_whole(tiny: JanusModel, samples: Samples) -> None:
    whole = watch(tiny, samples).layers[1].whole
    seen = watch(tiny, samples, Selection(layers=(1,), heads=(1, 3)))
    assert list(seen.layers) == [1]
    torch.testing.assert_close(seen.layers[1].whole.offsets, whole.offsets[:, [1, 3]])


def test_one_stream_alone_is_that_half_of_the_batch(tiny: JanusModel, samples: Samples) -> None:
    both = watch(tiny, samples).layers[0].whole.columns
    for place, stream in enumerate(("conditional", "unconditional")):
        one = watch(tiny, samples, Selection(streams=(stream,)))
        assert one.streams == (stream,)
        torch.testing.assert_close(one.layers[0].whole.columns, both[2 * place : 2 * place + 2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("every", [2, 3, 7])
def test_sampled_queries_sum_what_those_queries_see(tiny: JanusModel, samples: Samples, every: int) -> None:
    selection = Selection(every=every, rows=(1, 4))
    found = watch(tiny, samples, selection).layers[0].whole
    assert found.queries.tolist() == [t for t in range(4, 15) if t % every == 0]
    one_by_one = [
        watch(tiny, samples, Selection(rows=(t // 4, t // 4 + 1), every=t)).layers[0].whole for t in found.queries.tolist()
    ]
    assert all(one.queries.tolist() == [t] for one, t in zip(one_by_one, found.queries.tolist(), strict=True))
    total = one_by_one[0]
    for other in one_by_one[1:]:
        total = total.plus(other)
    close(found, total)


@pytest.mark.parametrize("cache", ["plain", "static", "all kept"])
def test_live_tracing_gives_the_numbers_of_the_parallel_pass(tiny: JanusModel, samples: Samples, cache: str) -> None:
    expected = watch(tiny, samples, Selection(full=True, band_count=2))
    everything = Policy.uniform(tiny.shape, window=15, stride=4, prefix=16) if cache == "all kept" else None
    with watch_live(tiny.decoder, tiny.shape.geometry, Selection(full=True, band_count=2)) as seen:
        if cache == "static":
            step_through(tiny, samples)
        else:
            generated = generate(tiny, samples.prompts, samples.seeds.tolist(), policy=everything)
            assert torch.equal(generated.tokens, samples.tokens)
    assert list(seen.layers) == [0, 1]
    for number in (0, 1):
        for found, wanted in zip(seen.layers[number].bands, expected.layers[number].bands, strict=True):
            close(found, wanted)


def step_through(model: JanusModel, samples: Samples) -> None:
    """Feed recorded tokens one by one, through a static cache, which has slots for tokens that are still to come."""
    prefix = model.tokenize(samples.prompts)
    ids, mask = torch.cat([prefix.ids, prefix.unconditional_ids]), torch.cat([prefix.mask, prefix.unconditional_mask])
    cache = StaticCache(config=model.decoder.config, max_cache_len=64)
    with torch.inference_mode():
        model.forward(model.embed_prefix(ids), mask, cache)
        for t in range(samples.tokens.shape[1] - 1):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            model.forward(model.embed_tokens(samples.tokens[:, t : t + 1].long().repeat(2, 1)), mask, cache)


def test_live_tracing_shows_what_compression_leaves(tiny: JanusModel, samples: Samples) -> None:
    """Heads that differ in length: window 0 sees the prefix and itself; window 4 reaches the cell above."""
    policy = Policy.uniform(tiny.shape, window=4, stride=4, prefix=16)
    window = policy.window.clone()
    window[:, 0] = 0
    with watch_live(tiny.decoder, tiny.shape.geometry) as seen:
        generate(tiny, samples.prompts, samples.seeds.tolist(), policy=policy.replace(window=window))
    for layer in seen.layers.values():
        footprint = CURVES["footprint"](layer.whole)
        lags = CURVES["lag_mass"](layer.whole)
        assert (lags[:, :2, 1:] == 0).all()  # two query heads to a KV head
        assert (lags[:, 2:, 5:] == 0).all()
        assert (lags[:, 2:, :5] > 0).all()
        prefix = STATISTICS["prefix_mass"](layer.whole)
        torch.testing.assert_close(footprint.sum((2, 3)) + prefix, torch.ones_like(prefix))


def test_a_second_batch_in_one_live_block_is_refused(tiny: JanusModel, samples: Samples) -> None:
    with pytest.raises(DataError, match="one batch in one block"), watch_live(tiny.decoder, tiny.shape.geometry):
        generate(tiny, samples.prompts, 0, batch_size=1)
    assert tiny.decoder.config._attn_implementation == "sdpa"


def test_two_threads_trace_one_model_without_mixing(tiny: JanusModel, samples: Samples) -> None:
    images = [samples.select([0]), samples.select([1])]
    alone = [watch(tiny, image).layers[1].whole.columns for image in images]
    found: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def work(number: int) -> None:
        for _ in range(5):
            found[number].append(watch(tiny, images[number]).layers[1].whole.columns)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (0, 1):
        assert len(found[number]) == 5
        assert all(torch.equal(columns, alone[number]) for columns in found[number])
    assert tiny.decoder.config._attn_implementation == "sdpa"
    assert not any(hasattr(module, "_headscope_callbacks") for module in tiny.decoder.modules())


def test_what_the_model_does_not_have_is_one_sentence(tiny: JanusModel, samples: Samples) -> None:
    for selection, words in (
        (Selection(layers=(2,)), "layer 2: the model has 2, numbered 0 to 1"),
        (Selection(heads=(9,)), "head 9: the model has 4"),
        (Selection(rows=(0, 5)), "row 4: the image has 4 rows, numbered 0 to 3"),
    ):
        with pytest.raises(DataError, match=words):
            watch(tiny, samples, selection)
    with pytest.raises(DataError, match="at least 1"):
        Selection(every=0)
    with pytest.raises(DataError, match="expected some of conditional, unconditional"):
        Selection(streams=("both",))
    unguided = generate(tiny, ["dog"], 0, sampling=Sampling(guidance=1.0))
    with pytest.raises(DataError, match="no unconditional stream"):
        watch(tiny, unguided, Selection(streams=("unconditional",)))


def test_a_registered_statistic_becomes_a_column(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    def corner(a: Accumulated) -> torch.Tensor:
        """Attention to the first cell of the image."""
        return a.columns[..., a.prefix] / a.count

    with pytest.raises(DataError, match="taken"):
        register_statistic("entropy", corner)
    with pytest.raises(DataError, match="no docstring"):
        register_statistic("corner", lambda a: a.entropy)
    register_statistic("corner", corner)
    try:
        table = trace(tiny, samples, tmp_path / "t").heads()
    finally:
        del STATISTICS["corner"]
    expected = watch(tiny, samples).layers[0].whole.columns[0, :, -15] / 15
    found = table.query("sample == 0 and layer == 0 and stream == 'conditional'")["corner"]
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
