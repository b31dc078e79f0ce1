"""A prefix whose keys are 0 is kept as one entry, which changes nothing but the bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from headscope.errors import CacheError, PolicyMismatch
from headscope.models import ImageModel, load_model
from headscope.policy import CacheSpec, Policy, load_policy, save_policy
from headscope.runtime import CompressedCache, Sampling, compressed, generate
from headscope.runtime.folded_prefix import folded
from headscope.tracing import watch_live
from headscope.tracing.catalogue import STATISTICS
from tests.llamagen import Tiny, transformer, write_llamagen
from tests.models.test_llamagen_captions import CAPTIONS, LENGTHS, write_features
from tests.runtime.test_rows_of_models import slowly

SIZE = Tiny(slots=6)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageModel, ImageModel]:
    """The same weights with the prefix folded and with every token of it."""
    return pair(tmp_path_factory, SIZE)


def pair(tmp_path_factory: pytest.TempPathFactory, size: Tiny) -> tuple[ImageModel, ImageModel]:
    found = []
    for name, more in (("folded", {}), ("whole", {"fold_prefix": False})):
        settings = {"heads": 4, "grid": 4, **more}
        folder = write_llamagen(tmp_path_factory.mktemp(name) / "Toy", size, transformer(size), "t.pt", settings=settings)
        features = [torch.randn(length, 16, generator=torch.Generator().manual_seed(length)) for length in LENGTHS]
        write_features(folder / "features.safetensors", features)
        found.append(load_model(str(folder), device="cpu"))
    return found[0], found[1]


def test_one_entry_is_worth_as_much_as_all() -> None:
    values, real = torch.tensor([1.0, 9.0, 3.0]).view(1, 1, 3, 1), torch.tensor([True, False, True]).view(1, 1, 1, 3)
    mean, added = folded(values, real)
    e = torch.tensor(0.5).exp()
    weight = added.exp()
    assert mean.item() == 2.0
    assert torch.allclose((weight * mean + 5 * e) / (weight + e), (1 + 3 + 5 * e) / (2 + e))


POLICIES: dict[str, dict[str, Any]] = {
    "everything": {"window": 15, "heavy": 0, "stride": 4},
    "mixed": {"window": torch.tensor([[3, 0, 2, 5]] * 2), "heavy": torch.tensor([[0, 4, 3, 0]] * 2), "stride": 4},
    "one by one": {"window": 2, "heavy": 4, "stride": 1, "anchor": 1},
    "8 bits": {"window": torch.tensor([[3, 4, 2, 5]] * 2), "heavy": torch.tensor([[0, 4, 3, 0]] * 2), "stride": 4, "bits": 8},
}


@torch.inference_mode()
def states(model: ImageModel, settings: dict[str, Any], chunk: int) -> tuple[torch.Tensor, CompressedCache, Policy]:
    """Logits of captions and of nothing, teacher forced through the cache, `chunk` tokens at a time."""
    ids, mask = model.tokenize(CAPTIONS).stacked(True)
    policy = Policy.uniform(model.shape, prefix=ids.shape[1], **settings)
    codes = torch.randint(0, 64, (len(ids), 15), generator=torch.Generator().manual_seed(0))
    cache, found = CompressedCache(policy, prefix=ids.shape[1]), []
    with compressed(model, policy):
        found.append(model.forward(model.embed_prefix(ids), mask, cache)[:, -1:])
        for start in range(0, 15, chunk):
            part = model.embed_tokens(codes[:, start : start + chunk])
            mask = torch.cat([mask, mask.new_ones(part.shape[:2])], 1)
            found.append(model.forward(part, mask, cache))
    return model.logits(torch.cat(found, 1)), cache, policy


@pytest.mark.parametrize("kind", ["everything", "mixed", "one by one"])  # in 8 bits a number on an edge falls to either side
def test_it_changes_nothing_of_a_caption_as_long_as_published(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    (one, small, _), (every, large, policy) = (
        states(model, POLICIES[kind], 1) for model in pair(tmp_path_factory, Tiny(slots=120))
    )
    assert policy.prefix == 120
    assert float((one - every).abs().max()) <= 1e-5 * float(every.abs().max())
    assert small.nbytes() < large.nbytes() / 4


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("kind", POLICIES)
def test_it_changes_nothing(both: tuple[ImageModel, ImageModel], kind: str, chunk: int) -> None:
    chunk = 1 if kind == "one by one" else chunk
    (one, small, policy), (every, large, other) = (states(model, POLICIES[kind], chunk) for model in both)
    assert float((one - every).abs().max()) <= 1e-5 * float(every.abs().max())
    for cache, made in ((small, policy), (large, other)):
        assert cache.nbytes() == CacheSpec(made.shape, 6, batch=4, dtype="float32").bytes_of(made)
    assert (
        large.nbytes() - small.nbytes() == 2 * 4 * 4 * 5 * 2 * 8 * 2 * 4
    )  # layers, heads, images, entries, k and v, size, streams, bytes


def test_shares_are_of_a_full_cache_that_is_folded_too(both: tuple[ImageModel, ImageModel]) -> None:
    spec, whole = (CacheSpec.of(model, 6) for model in both)
    assert (spec.full_bytes * 22, spec.prefix) == (whole.full_bytes * 17, 6)
    everything = Policy.uniform(both[0].shape, window=15, stride=1, prefix=6)
    assert spec.share_of(everything) == 1.0


@pytest.mark.parametrize("decoder", ["transformers", "llama_cpu"])
def test_images_are_the_same(both: tuple[ImageModel, ImageModel], decoder: str) -> None:
    found = []
    for model in both:
        policy = Policy.uniform(model.shape, window=2, heavy=4, stride=4, prefix=6)
        found.append(generate(model, CAPTIONS, 5, policy=policy, decoder=decoder, sampling=Sampling(temperature=0.5)).tokens)
    assert torch.equal(*found)
    full = [generate(model, CAPTIONS, 5, sampling=Sampling(temperature=0.5)).tokens for model in both]
    assert torch.equal(*full)


def test_what_is_watched_is_the_same(both: tuple[ImageModel, ImageModel]) -> None:
    found = []
    for model in both:
        with watch_live(model.decoder, model.shape.geometry, prefix=6) as seen:
            states(model, POLICIES["everything"], 4)
        found.append([STATISTICS["prefix_mass"](seen.layers[number].whole) for number in (0, 1)])
    for one, every in zip(*found, strict=True):
        assert torch.allclose(one, every, atol=1e-5)
        assert 0.01 < float(every.min()) < float(every.max()) < 0.99


def test_a_policy_says_which_bytes_it_counts(both: tuple[ImageModel, ImageModel], tmp_path: Path) -> None:
    one, every = both
    path = save_policy(Policy.uniform(one.shape, window=4, stride=1, prefix=6), tmp_path / "policy.safetensors")
    assert load_policy(path, one.shape).shape.folds_prefix
    with pytest.raises(PolicyMismatch, match="count one entry of the prefix, Toy was loaded to keep every token: load it with"):
        load_policy(path, every.shape)
    assert "folds_prefix" not in every.shape.to_dict()
    assert json.loads(json.dumps(one.shape.to_dict()))["folds_prefix"] is True


@torch.inference_mode()
def test_a_prompt_in_pieces_is_refused(both: tuple[ImageModel, ImageModel]) -> None:
    model = both[0]
    policy = Policy.uniform(model.shape, window=4, stride=1, prefix=6)
    embeds = model.embed_prefix(model.tokenize(CAPTIONS).ids)
    with compressed(model, policy), pytest.raises(CacheError, match="3 tokens of a prompt of 6, which is kept as one entry"):
        model.forward(embeds[:, :3], None, CompressedCache(policy, prefix=6))


def test_rows_at_once_see_the_entry(both: tuple[ImageModel, ImageModel]) -> None:
    """And the grid's own positions: both give what full attention under the mask of times gives."""
    sampling = Sampling(guidance=2.0, temperature=1.0)
    for settings in (POLICIES["everything"], POLICIES["mixed"]):
        policies = [Policy.uniform(model.shape, prefix=6, lead=2, **settings) for model in both]
        pair = zip(both, policies, strict=True)
        found = [generate(model, CAPTIONS, 1, policy=policy, sampling=sampling).tokens for model, policy in pair]
        assert torch.equal(*found)
        if settings is POLICIES["everything"]:
            assert torch.equal(found[0].long(), slowly(both[1], CAPTIONS, 1, 2, sampling))
