"""What is said to fit is what the cache allocates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from headscope.models.janus import JanusModel
from headscope.pipeline.budgets import Fits, what_fits
from headscope.policy import CacheSpec, Limit, Policy, load_policy, make_preset, save_policy
from headscope.policy.shipped import policy_file
from headscope.runtime import CompressedCache, compressed


def allocated(model: JanusModel, policy: Policy, images: int) -> int:
    """Bytes of the tensors of a real cache for so many guided images."""
    prefix = model.tokenize(["red apple"] * images)
    ids = torch.cat([prefix.ids, prefix.unconditional_ids])
    cache = CompressedCache(policy)
    with torch.inference_mode(), compressed(model, policy):
        model.forward(model.embed_prefix(ids), torch.ones_like(ids), cache)
    return sum(t.numel() * t.element_size() for layer in cache.compressed_layers for b in layer.buckets for t in b.tensors())


@given(st.integers(8_000, 90_000), st.sampled_from(["streaming", "h2o"]), st.floats(0.55, 0.9))
@settings(max_examples=15, deadline=None)
def test_the_largest_batch_fits_and_one_more_does_not(tiny: JanusModel, room: int, name: str, keep: float) -> None:
    prefix = tiny.tokenize(["red apple"]).ids.shape[1]
    policy = make_preset(name, Limit.of_share(keep, CacheSpec(tiny.shape, prefix)))
    fits = what_fits(CacheSpec(tiny.shape, prefix, batch=3, dtype="float32"), room, {"mine": policy}, shares=(1.0,))
    mine = next(row for row in fits.rows if row.name == "mine")
    if mine.images:
        assert allocated(tiny, policy, mine.images) <= room
    assert allocated(tiny, policy, mine.images + 1) > room
    plain = fits.rows[0]
    assert plain.kept == 1.0
    assert fits.allowed == pytest.approx(room / (3 * plain.bytes))


def test_the_sentence_says_what_to_do(tiny: JanusModel) -> None:
    def fits(room: int, batch: int) -> Fits:
        return what_fits(CacheSpec(tiny.shape, 4, batch=batch), room, {})

    def said(room: int, batch: int) -> str:
        return fits(room, batch).sentence

    assert said(10**9, 4) == "A batch of 4 images fits with the plain cache: no policy is needed."
    assert said(4_000, 1) == "A batch of 1 image may keep 78.1%."
    assert "does not fit with any policy: the smallest keeps 12.5%" in said(4_000, 16)
    assert [fits(*one).keep for one in ((10**9, 4), (4_000, 1), (4_000, 16))] == [None, "78.1%", None]


def test_shipped_policies_go_by_name(tmp_path: Path, tiny: JanusModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headscope.policy.shipped.FOLDERS", (tmp_path,))
    policy = Policy.uniform(tiny.shape, window=4, stride=4, prefix=4)
    save_policy(policy, tmp_path / "tiny-40.safetensors")
    assert load_policy("tiny-40", tiny.shape).same_as(policy)
    assert policy_file("tiny-50") == Path("tiny-50")
