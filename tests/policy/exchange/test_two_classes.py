"""DuoAttention and kvpress: their readers, written anew, see at least what the policy's heads see, and exactly that where two
classes are all there is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from headscope.errors import DataError, HeadscopeError, PolicyMismatch
from headscope.policy import CacheSpec, Limit, Policy, export_policy, import_policy
from tests.policy.exchange.policies import HEADS, TOKENS, policies, seen
from tests.policy.shapes import SHAPE


def full_heads(folder: Path, threshold: float | None, sparsity: float | None) -> np.ndarray:
    """Which heads DuoAttention takes for full, its noise included."""
    values = np.clip(np.loadtxt(folder / "full_attention_heads.tsv", dtype=float, delimiter="\t"), 0, 1)
    values = values + np.random.default_rng(0).uniform(0, 1e-6, values.shape)
    if sparsity is None:
        return values >= threshold
    return values >= (2 if sparsity >= 1 else -1 if sparsity <= 0 else np.quantile(values, sparsity))


def decoded(prefix: int, tokens: int, sink: int, recent: int) -> list[set[int]]:
    """What each image token sees in a streaming head of DuoAttention's cache: what is left of what came before, and itself."""
    cache, sees = list(range(prefix)), []

    def left(cache: list[int]) -> list[int]:
        return cache if len(cache) <= sink + recent else cache[:sink] + cache[-recent:]

    for t in range(tokens):
        cache = [*left(cache), prefix + t]
        sees.append(set(cache))
    return sees


@given(policies())
@settings(max_examples=30, deadline=None)
def test_duo_attention_hides_nothing_that_a_head_sees(tmp_path_factory: pytest.TempPathFactory, policy: Policy) -> None:
    folder = tmp_path_factory.mktemp("duo") / "pattern"
    notes = export_policy(policy, folder, to="duo-attention").notes
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    full = full_heads(folder, 0.5, None)
    assert (full == full_heads(folder, None, config["sparsity"])).all()
    streaming = decoded(policy.prefix, TOKENS, config["sink_size"], config["recent_size"])
    allocated = 0
    for layer, head in np.ndindex(*HEADS):
        allocated += policy.prefix + TOKENS if full[layer, head] else config["sink_size"] + config["recent_size"]
        if not full[layer, head]:
            assert policy.heavy[layer, head] == 0
            assert all(seen(policy, layer, head, t) <= streaming[t] for t in range(TOKENS))
    number = 4 if policy.limit is not None and policy.limit.spec.dtype == "float32" else 2
    assert notes["bytes"]["at_most"] == allocated * 2 * 2 * SHAPE.head_dim * number
    assert (notes["bytes"]["images"], notes["bytes"]["streams"]) == (1, 2)


@given(policies())
@settings(max_examples=30, deadline=None)
def test_values_keep_their_order_under_noise_and_go_by_what_heads_keep(
    tmp_path_factory: pytest.TempPathFactory, policy: Policy
) -> None:
    folder = tmp_path_factory.mktemp("duo") / "pattern"
    export_policy(policy, folder, to="duo_attention")
    values = np.loadtxt(folder / "full_attention_heads.tsv", delimiter="\t")
    slots = policy.slots().clamp(max=policy.prefix + TOKENS).numpy()
    full = values > 0.5
    order = np.argsort(values, axis=None)
    for some in (order[full.flat[order]], order[~full.flat[order]]):
        assert (np.diff(slots.flat[some]) >= 0).all()
    assert np.diff(values.flat[order]).min() > 1e-5


def folder_of(folder: Path, values: np.ndarray, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    np.savetxt(folder / "full_attention_heads.tsv", values, delimiter="\t")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@given(st.integers(0, TOKENS + 8), st.integers(1, TOKENS + 8), st.sampled_from((0, 1, 5)))
@settings(max_examples=40, deadline=None)
def test_an_imported_head_sees_what_decoding_sees_there(
    tmp_path_factory: pytest.TempPathFactory, sink: int, recent: int, prefix: int
) -> None:
    values = np.linspace(-0.5, 1.5, 12).reshape(HEADS)
    folder = folder_of(tmp_path_factory.mktemp("duo"), values, sink_size=sink, recent_size=recent, sparsity=None)
    policy = import_policy(folder, shape=SHAPE, prefix=prefix)
    full = torch.from_numpy(full_heads(folder, 0.5, None))
    assert (policy.window[full] == TOKENS - 1).all()
    assert torch.equal(policy.semantic_score, torch.from_numpy(values).clip(0, 1).float())
    layer, head = (~full).nonzero()[0].tolist()
    for t, there in enumerate(decoded(prefix, TOKENS, sink, recent)):
        here = seen(policy, layer, head, t)
        assert here == (there if sink >= prefix else there | set(range(prefix)))  # our prompts are kept whole


def test_two_classes_go_there_and_back_as_they_are(tmp_path: Path) -> None:
    full = torch.arange(12).view(HEADS) % 3 == 0
    window, anchor = torch.where(full, TOKENS - 1, 7), torch.where(full, 0, 2)
    policy = Policy.uniform(SHAPE, window=window, anchor=anchor, stride=1, prefix=5)
    notes = export_policy(policy, tmp_path / "pattern", to="duo_attention").notes
    assert not any(sentence.startswith(("window", "anchor", "heavy", "bits")) for sentence in notes["lost"])
    assert import_policy(tmp_path / "pattern", "duo_attention", SHAPE, prefix=5).same_as(policy)
    one = replace(SHAPE, layers=1)
    policy = Policy.uniform(one, window=window[:1], anchor=anchor[:1], stride=1, prefix=5)
    export_policy(policy, tmp_path / "one", to="duo_attention")
    assert import_policy(tmp_path / "one", shape=one, prefix=5).same_as(policy)


def test_under_a_limit_full_heads_choose_and_the_others_stream(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 12).reshape(HEADS)
    folder = folder_of(tmp_path / "p", values, sink_size=9, recent_size=3, sparsity=0.75)
    limit = Limit.parse("40%", CacheSpec(SHAPE, 5))
    policy = import_policy(folder, shape=SHAPE, limit=limit)
    assert limit.spec.bytes_of(policy) <= limit.bytes
    assert torch.equal(policy.heavy > 0, torch.from_numpy(full_heads(folder, None, 0.75)))
    assert torch.equal(policy.window > 0, policy.heavy == 0)
    assert policy.provenance["method"] == "duo_attention"


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    good = {"sink_size": 9, "recent_size": 3}
    folder = folder_of(tmp_path / "p", np.ones((3, 8)), **good)
    with pytest.raises(PolicyMismatch, match=r"has 3 layers of 8 heads \(these may be query heads\), toy has 3 layers of 4 KV"):
        import_policy(folder, shape=SHAPE, prefix=5)
    folder = folder_of(folder, np.ones(HEADS), **good)
    with pytest.raises(HeadscopeError, match="name the one that it is for"):
        import_policy(folder, prefix=5)
    with pytest.raises(HeadscopeError, match="give the longest prompt in tokens"):
        import_policy(folder, shape=SHAPE)
    for config, says in (({"sink_size": 9}, "lacks recent_size"), ({**good, "recent_size": 0}, "recent_size is 0, expected")):
        with pytest.raises(DataError, match=rf"config\.json: {says}"):
            import_policy(folder_of(folder, np.ones(HEADS), **config), shape=SHAPE, prefix=5)
    for text, says in (
        ("", "it is empty"),
        ("a\tb\n", "no table"),
        ("1\t2\n3\n", "no table"),
        ("nan\t1\t1\t1\n" * 3, "is nan"),
    ):
        folder = folder_of(folder, np.ones(HEADS), **good)
        (folder / "full_attention_heads.tsv").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=says):
            import_policy(folder, shape=SHAPE, prefix=5)


@given(policies())
@settings(max_examples=30, deadline=None)
def test_kvpress_is_told_the_same_classes_and_what_each_layer_keeps(
    tmp_path_factory: pytest.TempPathFactory, policy: Policy
) -> None:
    folder = tmp_path_factory.mktemp("kvpress")
    notes = export_policy(policy, folder / "press.json", to="kvpress").notes
    export_policy(policy, folder / "pattern", to="duo_attention")
    facts = json.loads((folder / "press.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "pattern" / "config.json").read_text(encoding="utf-8"))
    press, layers = facts["DuoAttentionPress"], facts["PerLayerCompressionPress"]
    assert (np.array(press["streaming_mask"]) == ~full_heads(folder / "pattern", 0.5, None)).all()
    assert (press["sink_size"], press["recent_size"]) == (config["sink_size"], config["recent_size"])
    length = policy.prefix + TOKENS
    assert layers["length"] == length == notes["length"]["tokens"]
    for layer, removed in enumerate(layers["compression_ratios"]):
        kept = sum(min(int(slots), length) for slots in policy.slots()[layer]) / SHAPE.kv_heads
        assert max(1, int(length * (1 - removed))) == np.ceil(kept)  # as kvpress counts
    assert notes["bytes"]["at_most"] == notes["bytes"]["plain"]
