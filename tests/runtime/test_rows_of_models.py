"""Whole models, rows at once: against full attention under the mask of times, computed anew at every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from headscope.errors import CacheError, DataError, PolicyMismatch
from headscope.geometry import Geometry
from headscope.models import RasterModel
from headscope.models.attention import attend_through_cache, observe
from headscope.models.janus import JanusModel
from headscope.policy import Policy
from headscope.runtime import CompressedCache, Sampler, Sampling, choose, compressed, decoder_name, generate
from headscope.runtime.cache import CompressedCache as Sequential
from headscope.runtime.decoders.llama_cpu import LlamaCpuDecoder
from headscope.runtime.row_cache import RowsCache
from tests.models.test_raster import gpt2, llama, model_of
from tests.runtime.test_cache_meaning import TOKENS, Module, random_states, shape_of
from tests.tiny import tiny_model

PROMPTS = ["dog", "a blue car on a red background", "red apple"]


def everything(model: Any, lead: int, **more: Any) -> Policy:
    facts = {"window": model.shape.geometry.tokens - 1, "stride": 1, "prefix": model.max_prefix, **more}
    return Policy.uniform(model.shape, lead=lead, **facts)


@torch.inference_mode()
def slowly(model: Any, prompts: list[str], seed: int, lead: int, sampling: Sampling) -> torch.Tensor:
    """Tokens [n, N]; no cache, one forward of all that was fed so far at every step."""
    geometry, sampling = model.shape.geometry, sampling.of(model)
    length, count = geometry.row_length, geometry.tokens
    sampler = Sampler(model, sampling, [seed + n for n in range(len(prompts))])
    ids, mask = model.tokenize(prompts).stacked(sampling.guided)
    prefix, prompt = ids.shape[1], model.embed_prefix(ids)
    fed_at = [t // length * lead + t % length for t in range(count)]
    tokens = torch.zeros(len(prompts), count, dtype=torch.int64)

    def draw(t: int, hidden: torch.Tensor) -> None:
        tokens[:, t] = sampler.after(hidden, t)[0]

    draw(0, model.forward(prompt, mask)[:, -1] if prefix else torch.empty(len(ids), 0))
    for step in range(max(fed_at)):
        fed = [t for t in range(count) if fed_at[t] <= step]
        ends = [t for t in range(count - 1) if (t + 1) % length == 0 and fed_at[t + 1] == step + 1 and fed_at[t] > step]
        image = model.embed_tokens(tokens[:, fed])
        for end in ends:
            first = end - length + 1
            there = [first, *([first - 1] if first and first - 1 in fed else [])]
            if not image.is_floating_point():
                there = there[:1]
            codes = torch.full((len(prompts), 1), model.vocabulary - 1) if geometry.row_end else tokens[:, there]
            stand_in = model.embed_tokens(codes)
            image = torch.cat([image, stand_in.mean(1, keepdim=True) if len(there) > 1 else stand_in], 1)
        embeds = torch.cat([prompt, image.repeat(sampling.streams, 1, 1)], 1)
        at = [*range(-prefix, 0), *fed, *ends]
        seen = torch.zeros(len(ids), 1, len(at), len(at), dtype=torch.bool)
        for i, query in enumerate(at):
            for j, key in enumerate(at):
                if key < 0:
                    seen[:, 0, i, j] = (mask[:, j] > 0) & (key <= query) | (i == j)
                elif j < prefix + len(fed):
                    seen[:, 0, i, j] = key <= query and fed_at[key] <= (step if i >= prefix + len(fed) else fed_at[query])
                else:
                    seen[:, 0, i, j] = i == j
        hidden = model.forward_at(embeds, torch.tensor(at) + prefix, mask, seen)[:, prefix:]
        for place, t in enumerate([*fed, *ends]):
            if t + 1 < count and fed_at[t + 1] == step + 1 and (place >= len(fed) or fed_at[t] == step):
                draw(t + 1, hidden[:, place])
    return tokens


@pytest.mark.parametrize("lead", [1, 2, 3])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_janus_generates_what_full_attention_under_the_mask_gives(tiny: JanusModel, lead: int, guidance: float) -> None:
    sampling = Sampling(guidance=guidance, temperature=1.0)
    policy = everything(tiny, lead)
    found = generate(tiny, PROMPTS, 3, policy=policy, sampling=sampling).tokens
    assert torch.equal(found.long(), slowly(tiny, PROMPTS, 3, lead, sampling))
    alone = generate(tiny, PROMPTS[1:2], 4, policy=policy, sampling=sampling).tokens
    assert torch.equal(alone, found[1:2])


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("lead", [1, 2, 4])
@pytest.mark.parametrize("start", [[0], []])
def test_forced_row_ends_stand_in_for_themselves(make: Any, lead: int, start: list[int]) -> None:
    prompts = {"cat": [16], "dog": [17, 2]} if start else None
    model = model_of(make(), geometry=Geometry(3, 4, 1), row_end=19, start=start, prompts=prompts)
    sampling = Sampling(temperature=1.0)
    found = generate(model, ["cat", "dog"], 5, policy=everything(model, lead), sampling=sampling).tokens
    assert torch.equal(found.long(), slowly(model, ["cat", "dog"], 5, lead, sampling))
    assert (found[:, 4::5] == model.vocabulary - 1).all()


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_model_without_prompts_has_stand_ins(make: Any) -> None:
    model = model_of(make(), geometry=Geometry(4, 2), start=[])
    sampling = Sampling(temperature=1.0)
    found = generate(model, ["one", "two"], 5, policy=everything(model, 1), sampling=sampling).tokens
    assert torch.equal(found.long(), slowly(model, ["one", "two"], 5, 1, sampling))


def test_ways_of_keeping_everything_give_the_same_tokens(tiny: JanusModel) -> None:
    some = [
        everything(tiny, 2),
        everything(tiny, 2, window=7, heavy=8, stride=4),
        everything(tiny, 2, window=0, heavy=16, stride=1),
        everything(tiny, 2, window=torch.tensor([[15, 3], [0, 15]]), heavy=torch.tensor([[0, 12], [15, 0]]), stride=8),
    ]
    found = [generate(tiny, PROMPTS, 3, policy=policy).tokens for policy in some]
    assert all(torch.equal(one, found[0]) for one in found)


def test_a_row_as_lead_is_the_sequential_path(tiny: JanusModel) -> None:
    policy = everything(tiny, 4, window=5)
    assert decoder_name(tiny, policy) == "llama_cpu"
    assert decoder_name(tiny, policy.replace(lead=2)) == "transformers"
    assert torch.equal(
        generate(tiny, PROMPTS, 3, policy=policy).tokens,
        generate(tiny, PROMPTS, 3, policy=Policy.uniform(tiny.shape, window=5, stride=1, prefix=tiny.max_prefix)).tokens,
    )


def test_the_schedule_of_a_row_gives_what_the_sequential_cache_gives() -> None:
    """The code of rows at once, one token a step: outputs and bytes of the code that knows no leads."""
    policy = Policy.uniform(
        shape_of(6, 3),
        window=torch.tensor([[3, 2, 0]]),
        heavy=torch.tensor([[0, 4, 3]]),
        anchor=torch.tensor([[1, 0, 2]]),
        decay=0.9,
        per_visit=torch.tensor([[0, 1, 0]]),
        stride=4,
        prefix=3,
    )
    q, k, v = random_states(7, 2, 6, 3, 3 + TOKENS)
    found = []
    for kind in (Sequential, RowsCache):
        cache, at, outputs = kind(policy, prefix=3), 0, []
        for count in [3, *[1] * TOKENS]:
            part = slice(at, at + count)
            keys, values = cache.update(k[:, :, part], v[:, :, part], 0)
            outputs.append(attend_through_cache(Module(2), q[:, :, part], keys, values, None, scaling=0.7)[0])
            at += count
        found.append((torch.cat(outputs, 1), cache.nbytes()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-6)
    assert found[0][1] == found[1][1]


class Told(nn.Module):
    """A network in plain PyTorch that is told positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(20, 16), nn.Embedding(24, 16)
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 20)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.places(positions)
        q, k, v = (part.unflatten(2, (4, 4)).transpose(1, 2) for part in self.qkv(x).mul(2).chunk(3, -1))
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x + self.out(seen.transpose(1, 2).flatten(2)))


class Counting(Told):
    """One that counts them itself."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(tokens, torch.arange(tokens.shape[1]).expand_as(tokens))


def test_plain_networks_are_fed_anywhere_in_the_image() -> None:
    sampling = Sampling(temperature=1.0)
    models = [RasterModel(kind(), "mine", geometry=Geometry(4, 4), codes=(3, 12), start=[0]) for kind in (Told, Counting)]
    found = [generate(model, ["a", "b"], 1, policy=everything(model, 2), sampling=sampling).tokens for model in models]
    assert torch.equal(found[0].long(), slowly(models[0], ["a", "b"], 1, 2, sampling))
    assert torch.equal(*found)


def test_what_cannot_be_is_one_sentence(tiny: JanusModel) -> None:
    policy = everything(tiny, 2)
    with pytest.raises(CacheError, match=r"begins a row 2 columns after the one above.* use headscope\.generate, or a policy"):
        CompressedCache(policy)
    with pytest.raises(DataError, match="decoder llama_cpu: feeds one token a step, and this policy generates rows at once"):
        generate(tiny, PROMPTS, policy=policy, decoder="llama_cpu")
    assert LlamaCpuDecoder.lacking(tiny, policy) is not None
    with pytest.raises(PolicyMismatch, match="lead 5: expected 1 to 4 columns, of which 4 generates row after row"):
        everything(tiny, 5)
    cache, two = RowsCache(policy, prefix=2), torch.zeros(1, 2, 2, 8)
    keys, values = cache.update(two, two, 0)
    attend_through_cache(Module(2), torch.zeros(1, 4, 2, 8), keys, values, None, scaling=1.0)
    with pytest.raises(CacheError, match="2 tokens in one call, expected 1 at step 0 of 10"):
        cache.update(two, two, 0)


def test_an_observer_is_told_to_take_rows_one_by_one(tiny: JanusModel) -> None:
    with observe(tiny.decoder, lambda layer, groups: None), pytest.raises(CacheError, match="can't be watched"):
        generate(tiny, ["dog"], policy=everything(tiny, 2))


def test_a_model_without_forward_at_is_told_so() -> None:
    model: Any = tiny_model()

    class Bare:
        """All of a model but that."""

        def __getattr__(self, name: str) -> Any:
            if name == "forward_at":
                raise AttributeError(name)
            return getattr(model, name)

    with pytest.raises(DataError, match="no decoder can run it with this policy; transformers needs a model with `forward_at`"):
        choose(Bare(), everything(model, 2))  # type: ignore[arg-type]


def test_other_attention_is_back_afterwards(tiny: JanusModel) -> None:
    network: PreTrainedModel = tiny.network
    before = tiny.decoder.config._attn_implementation
    generate(tiny, ["dog"], policy=everything(tiny, 2))
    assert tiny.decoder.config._attn_implementation == before
    with compressed(network, everything(tiny, 4)):
        pass
