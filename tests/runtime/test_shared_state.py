"""Nothing that a call leaves behind changes another: threads, modules that were exchanged, tensors that were kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from headscope.models.attention import observe
from headscope.models.janus import JanusModel
from headscope.policy.policy import Policy
from headscope.runtime import CompressedCache, Sampling, compressed, generate
from headscope.runtime.decoders.llama_cpu import step_for
from headscope.tracing import watch_live
from headscope.tuning import Replay
from headscope.tuning.measure.options import Option
from headscope.tuning.measure.single_head import SingleHeadLoss
from tests.tiny import tiny_model

WAIT = 30.0
GREEDY = Sampling(temperature=0.0)


def together(*work: Callable[[], Any]) -> list[Any]:
    """What each gives, all at once, a thread each."""
    found: list[Any] = [None] * len(work)
    gate = threading.Barrier(len(work))

    def run(number: int) -> None:
        gate.wait(WAIT)
        try:
            found[number] = work[number]()
        except Exception as error:  # told in the thread that compares
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    return found


@pytest.mark.parametrize("fast", [True, False], ids=["by the fast step", "by the model's own forward"])
def test_threads_draw_what_each_draws_alone(fast: bool) -> None:
    model = tiny_model()
    small = Policy.uniform(model.shape, window=3, heavy=2, stride=4, prefix=8)
    mixed = Policy.uniform(model.shape, window=torch.tensor([[5, 1], [0, 3]]), stride=2, prefix=8)
    if not fast:
        model.decoder.layers[0].register_forward_hook(lambda *_: None)  # type: ignore[union-attr, operator]
    assert (step_for(model) is not None) == fast
    kinds = [(small, 0), (mixed, 7), (None, 3), (small, 11)]
    prompts = ["red apple", "a blue car on a red background"]  # padded
    alone = [generate(model, prompts, seed, policy=policy).tokens for policy, seed in kinds]
    for _ in range(4):
        work = [lambda p=policy, s=seed: generate(model, prompts, s, policy=p).tokens for policy, seed in kinds]
        for found, expected in zip(together(*work), alone, strict=True):
            assert isinstance(found, torch.Tensor), found
            assert torch.equal(found, expected)
        assert model.decoder.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("order", ["first in, first out", "first in, last out"])
@pytest.mark.parametrize("kinds", ["observing and caching", "caching and observing", "caching twice", "observing twice"])
def test_the_attention_is_back_in_every_order_of_ending(tiny: JanusModel, kinds: str, order: str) -> None:
    policy = Policy.uniform(tiny.shape, window=3, stride=4, prefix=8)

    def opened(kind: str) -> Any:
        block = observe(tiny.decoder, lambda *_: None) if kind.startswith("observ") else compressed(tiny, policy)
        block.__enter__()
        return block

    first, second = (opened(kind) for kind in kinds.replace("twice", f"and {kinds.split()[0]}").split(" and "))
    for block in (first, second) if order == "first in, first out" else (second, first):
        assert tiny.decoder.config._attn_implementation != "sdpa"
        block.__exit__(None, None, None)
    assert tiny.decoder.config._attn_implementation == "sdpa"


def test_a_thread_may_observe_while_another_draws_with_a_policy() -> None:
    model = tiny_model()
    policy = Policy.uniform(model.shape, window=3, heavy=2, stride=4, prefix=8)
    expected = generate(model, ["red apple"], 5, policy=policy).tokens

    def traced() -> int:
        with watch_live(model.decoder, model.shape.geometry) as seen:
            generate(model, ["dog"], 1)
        return int(seen.layers[0].whole.count)

    alone = traced()
    for _ in range(3):
        generated, count = together(lambda: generate(model, ["red apple"], 5, policy=policy).tokens, traced)
        assert torch.equal(generated, expected)
        assert count == alone
    assert model.decoder.config._attn_implementation == "sdpa"


class Adapter(nn.Module):
    """As adapters wrap a layer: `weight` is still the layer's own."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.added = nn.Linear(base_layer.in_features, base_layer.out_features, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base_layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + 3 * self.added(x)


class Half(nn.Linear):
    """Another Linear class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * super().forward(x)


def wrap(layer: Any) -> None:
    torch.manual_seed(2)
    layer.self_attn.q_proj = Adapter(layer.self_attn.q_proj)


def subclass(layer: Any) -> None:
    old = layer.mlp.down_proj
    layer.mlp.down_proj = Half(old.in_features, old.out_features, bias=False)
    layer.mlp.down_proj.weight = old.weight


def override(layer: Any) -> None:
    forward = layer.self_attn.v_proj.forward
    layer.self_attn.v_proj.forward = lambda x: 2 * forward(x)


def exchange(layer: Any) -> None:
    """A plain layer in the place of another: the fast step may go on, with the new weights."""
    torch.manual_seed(3)
    layer.mlp.gate_proj = nn.Linear(32, 32, bias=True)


@pytest.mark.parametrize("change", [wrap, subclass, override, exchange])
def test_a_module_that_changed_after_a_first_image_is_followed(change: Callable[[Any], None]) -> None:
    model = tiny_model()
    everything = Policy.uniform(model.shape, window=15, stride=4, prefix=8)

    def generated(policy: Policy | None) -> torch.Tensor:
        return generate(model, ["red apple", "dog"], 0, policy=policy, sampling=GREEDY).tokens

    before = generated(everything)
    assert torch.equal(before, generated(None))
    assert step_for(model) is not None
    change(model.decoder.layers[1])  # type: ignore[index, operator, union-attr]
    after = generated(everything)
    assert torch.equal(after, generated(None))
    assert not torch.equal(after, before)
    assert (step_for(model) is not None) == (change is exchange)


@pytest.mark.filterwarnings("ignore:torch")
def test_quantised_layers_draw_with_a_policy_too() -> None:
    model = tiny_model()
    torch.ao.quantization.quantize_dynamic(model.decoder, {nn.Linear}, inplace=True)
    everything = Policy.uniform(model.shape, window=15, stride=4, prefix=8)
    full = generate(model, ["dog"], 0, sampling=GREEDY).tokens
    assert torch.equal(generate(model, ["dog"], 0, policy=everything, sampling=GREEDY).tokens, full)


def test_what_a_search_leaves_behind_works_with_gradients() -> None:
    model = tiny_model(side=6)  # other sizes than any other test keeps masks of
    windows, heavy = torch.tensor([[4, 2], [1, 2]]), torch.tensor([[0, 2], [2, 0]])
    policy = Policy.uniform(model.shape, window=windows, heavy=heavy, stride=3, prefix=8)
    Replay(model, generate(model, ["red apple", "dog"], 0)).measure(policy)
    given = model.tokenize(["red apple", "dog"])
    embeds, mask = model.embed_tokens(torch.zeros(2, 6, dtype=torch.int64)), given.mask
    with compressed(model, policy):
        cache = CompressedCache(policy)
        outputs = [model.forward(model.embed_prefix(given.ids), mask, cache)]
        for start, stop in ((0, 3), (3, 4), (4, 6)):
            mask = torch.cat([mask, mask.new_ones(2, stop - start)], 1)
            outputs.append(model.forward(embeds[:, start:stop], mask, cache))
    assert all(output.requires_grad and output.isfinite().all() for output in outputs)


def test_a_replay_of_single_heads_leaves_other_threads_alone() -> None:
    model = tiny_model()
    samples = generate(model, ["red apple", "dog"], 0)
    expected = generate(model, ["a blue car"], 4).tokens
    replay = Replay(model, samples, by_stream=False)
    heads, option = SingleHeadLoss(replay, stride=4), Option(window=1, heavy=0)

    def losses() -> list[float]:
        return [heads.loss(layer, head, option) for layer in (0, 1) for head in (0, 1)]

    losses()  # tries the shortcut on the first
    alone = losses()
    assert heads.shortcut
    for _ in range(3):
        found, generated = together(losses, lambda: generate(model, ["a blue car"], 4).tokens)
        assert found == alone
        assert torch.equal(generated, expected)
