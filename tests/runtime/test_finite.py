"""Numbers that are none stop what they would spoil: with the token, the layer where it can be told, and what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headscope.errors import NumberError
from headscope.models.janus import JanusModel
from headscope.policy import CacheSpec
from headscope.policy.footprint import Limit
from headscope.policy.policy import Policy
from headscope.runtime import Sampling, generate
from headscope.runtime.finite import finite_choice
from headscope.tuning import Replay, measure_sensitivity
from headscope.tuning.measure.options import Option
from headscope.tuning.propose.presets import sweep_presets
from tests.tiny import tiny_model

SMALL = {"window": 3, "heavy": 2, "stride": 4, "prefix": 8}


def broken(where: Callable[[JanusModel], torch.Tensor], value: float = float("nan")) -> JanusModel:
    """A tiny model with one number that is none, at [0, 0] of a weight."""
    model = tiny_model()
    with torch.no_grad():
        where(model)[0, 0] = value
    return model


def last_mlp(model: JanusModel) -> torch.Tensor:
    return model.network.model.language_model.layers[1].mlp.down_proj.weight


def second_keys(model: JanusModel) -> torch.Tensor:
    return model.network.model.language_model.layers[1].self_attn.k_proj.weight


def head(model: JanusModel) -> torch.Tensor:
    return model.network.model.generation_head.vision_head.weight


@pytest.mark.parametrize("policy", [False, True], ids=["full cache", "with a policy"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_image_of_logits_that_are_none_is_not_drawn(policy: bool, guidance: float, temperature: float) -> None:
    for where, layer in ((last_mlp, None), (second_keys, 1), (head, None)):
        model = broken(where)
        kept = Policy.uniform(model.shape, **SMALL) if policy else None
        with pytest.raises(NumberError, match="image token 0") as told:
            generate(model, ["red apple", "dog"], 0, policy=kept, sampling=Sampling(guidance, temperature))
        assert ("layer 1" in str(told.value)) == (layer == 1)


@pytest.mark.parametrize("policy", [False, True], ids=["full cache", "with a policy"])
def test_the_token_where_it_begins_is_told(policy: bool) -> None:
    """Code 5 has an embedding that is no number: the token after its first appearance is the first that can't be generated."""
    model = tiny_model()
    kept = Policy.uniform(model.shape, **SMALL) if policy else None
    tokens = generate(model, ["red apple"], 3, policy=kept).tokens[0].tolist()
    code = tokens[6]
    first = tokens.index(code)
    with torch.no_grad():
        model.network.model.generation_embeddings.weight[code] = float("inf")
    with pytest.raises(NumberError, match=rf"image token {first + 1} .*layer 0"):
        generate(model, ["red apple"], 3, policy=kept)


def test_half_precision_is_told_how_to_go_on() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.network.model.language_model.layers[0].mlp.down_proj.weight.mul_(3e4)
        model.network.model.language_model.norm.weight.mul_(3e4)
    assert generate(model, ["dog"], 0).tokens.shape == (1, 16)
    model.network.to(torch.float16)
    with pytest.raises(NumberError, match="`dtype`"):
        generate(model, ["dog"], 0)


def test_a_code_that_may_not_be_drawn_is_no_fault() -> None:
    scores = torch.tensor([[-torch.inf, 1.0, 0.5], [2.0, -torch.inf, -torch.inf]])
    codes, found = finite_choice(scores)
    assert codes.tolist() == [1, 0]
    assert found.all()
    for bad in (torch.full((1, 3), -torch.inf), torch.tensor([[0.0, torch.inf, 1.0]]), torch.tensor([[0.0, torch.nan, 9.0]])):
        assert not finite_choice(bad)[1].any()


def test_a_search_on_such_a_model_stops_with_the_token() -> None:
    model = tiny_model()
    samples = generate(model, ["red apple", "dog"], 0)
    replay = Replay(model, samples, by_stream=False)
    with torch.no_grad():
        last_mlp(model)[0, 0] = float("nan")
    with pytest.raises(NumberError, match="image token 1"):
        Replay(model, samples)
    limit = Limit.of_share("70%", CacheSpec(model.shape, replay.prefix))
    with pytest.raises(NumberError, match="image token 1"):
        sweep_presets(replay, limit, torch.full((2, 2), 0.5))
    with pytest.raises(NumberError, match="image token 1"):
        measure_sensitivity(replay, [Option(window=2, heavy=0)], None, stride=4)
