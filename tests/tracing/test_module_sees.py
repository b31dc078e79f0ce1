"""A traced module's statistics are of the attention that it computes: with the numbers its mask adds, however it is called."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import Gemma2Config, Gemma2Model, ImageGPTConfig, ImageGPTModel

from headscope import trace_module
from headscope.geometry import Geometry
from headscope.models.intercept import attach
from headscope.tracing import Selection
from headscope.tracing.module import ModuleTrace
from tests.tracing.definitions import by_definition

GEOMETRY, PREFIX, LENGTH, HEADS = Geometry(3, 4), 3, 14, 4  # 11 of 12 image tokens are fed
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
BACK = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
WATCHED = ("sparsity_1", "previous_token", "row_above", "entropy", "mean_distance", "column_variance", "prefix_mass")


def alibi(heads: int = HEADS) -> torch.Tensor:
    """[heads, L, L]: ALiBi's penalty of distance (Press et al., 2108.12409), -inf at later tokens."""
    slopes = torch.tensor([2.0 ** -(1 + n) for n in range(heads)])
    return (-slopes[:, None, None] * BACK.clamp(min=0)).masked_fill(~CAUSAL, -torch.inf)


class Masked(nn.Module):
    """Attention under a mask that was given to it."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask = mask
        self.qkv = nn.Linear(32, 96)

    def heads(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(*self.heads(x), attn_mask=self.mask)


def check(found: ModuleTrace, maps: torch.Tensor, names: Sequence[str] = WATCHED) -> None:
    """Statistics of each sequence and head of maps [B, H, L, L], by their definitions."""
    for sequence, of_heads in enumerate(maps):
        for head, one in enumerate(of_heads):
            row = found.table.query(f"sequence == {sequence} and head == {head}").iloc[0]
            attention = one[PREFIX:].detach().double().numpy()
            for name in names:
                expected = by_definition(attention, name, GEOMETRY.cols)
                np.testing.assert_allclose(row[name], expected, atol=1e-5, err_msg=f"{name} of {sequence}, {head}")


def random_bias() -> torch.Tensor:
    """[2, HEADS, L, L]: other numbers for every sequence."""
    numbers = 3 * torch.randn(2, HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(4))
    return numbers.masked_fill(~CAUSAL, -torch.inf)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(lambda: alibi()[None], id="a bias by head"),
        pytest.param(lambda: alibi()[1], id="one bias"),
        pytest.param(random_bias, id="a bias by sequence and head"),
        pytest.param(lambda: torch.zeros(LENGTH, LENGTH).masked_fill(~CAUSAL, -1e9), id="hidden by large numbers"),
    ],
)
def test_what_a_mask_adds_is_in_the_statistics(mask: Callable[[], torch.Tensor]) -> None:
    torch.manual_seed(0)
    module, x = Masked(mask()), torch.randn(2, LENGTH, 32)
    q, k, _ = module.heads(x)
    maps = (q @ k.mT / 8**0.5 + module.mask).softmax(-1)
    check(trace_module(module, x, GEOMETRY, prefix=PREFIX), maps)
    few = Selection(heads=(1, 3), every=2)
    found = trace_module(module, x, GEOMETRY, prefix=PREFIX, selection=few).table
    asked = maps[:, (1, 3), PREFIX::2, :PREFIX].sum((-1, -2)) / len(range(0, LENGTH - PREFIX, 2))
    np.testing.assert_allclose(found["prefix_mass"].to_numpy().reshape(2, 2), asked.detach().numpy(), atol=1e-5)


def test_without_a_prefix_nothing_is_missing() -> None:
    torch.manual_seed(0)
    module, x = Masked(alibi()[1]), torch.randn(2, LENGTH, 32)
    geometry = Geometry(4, 4)
    found = trace_module(module, x, geometry, prefix=0, selection=Selection(full=True))
    q, k, _ = module.heads(x)
    maps = (q @ k.mT / 8**0.5 + module.mask).softmax(-1)
    assert found.table["prefix_mass"].eq(0).all()
    expected = maps[:, :, 1:].diagonal(0, 2, 3).sum(-1) / LENGTH
    np.testing.assert_allclose(found.table["previous_token"].to_numpy().reshape(2, HEADS), expected.detach(), atol=1e-5)


class Multi(nn.Module):
    """`nn.MultiheadAttention` as people call it."""

    def __init__(self, separate: bool = False, **call: object) -> None:
        super().__init__()
        sizes = {"kdim": 32, "vdim": 24} if separate else {}
        self.attention = nn.MultiheadAttention(32, HEADS, batch_first=True, **sizes)
        self.separate, self.call = separate, call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x[..., :24] if self.separate else x, **self.call)[0]


PADDED = torch.zeros(2, LENGTH, dtype=torch.bool).index_fill(1, torch.tensor([0]), True) & torch.tensor([[True], [False]])


@pytest.mark.parametrize(
    ("module", "mask"),
    [
        (lambda: Multi(attn_mask=~CAUSAL, need_weights=False, is_causal=True), alibi(1)[0] * 0),
        (lambda: Multi(attn_mask=~CAUSAL), alibi(1)[0] * 0),
        (lambda: Multi(attn_mask=alibi().repeat(2, 1, 1), need_weights=False), alibi()),
        (lambda: Multi(separate=True, attn_mask=alibi(1)[0], need_weights=False), alibi(1)[0]),
        (
            lambda: Multi(attn_mask=~CAUSAL, key_padding_mask=PADDED, need_weights=False),
            torch.zeros(2, 1, 1, LENGTH).masked_fill(PADDED[:, None, None], -torch.inf),
        ),
    ],
    ids=["no weights asked for", "weights asked for", "a bias by head", "own sizes of keys", "padding"],
)
def test_multi_head_attention_of_pytorch_is_seen(module: Callable[[], Multi], mask: torch.Tensor) -> None:
    torch.manual_seed(0)
    made, x = module().eval(), 2 * torch.randn(2, LENGTH, 32)
    before = made(x)
    found = trace_module(made, x, GEOMETRY, prefix=PREFIX)
    assert not found.skipped
    assert list(found.layers) == ["attention"]
    torch.testing.assert_close(made(x), before, equal_nan=True)
    own = made.attention
    weights = (own.q_proj_weight, own.k_proj_weight) if made.separate else own.in_proj_weight.chunk(3)[:2]
    q, k = (
        functional.linear(x, weight, bias).unflatten(2, (HEADS, 8)).transpose(1, 2)
        for weight, bias in zip(weights, own.in_proj_bias.chunk(3), strict=False)
    )
    maps = (q @ k.mT / 8**0.5 + mask.nan_to_num(neginf=-torch.inf)).masked_fill(~CAUSAL, -torch.inf).softmax(-1)
    check(found, maps, [name for name in WATCHED if name != "entropy" or not mask.isinf().any()])  # padding is not counted


def test_what_a_module_does_beside_its_mask_is_named() -> None:
    layer = nn.MultiheadAttention(32, HEADS, batch_first=True, add_zero_attn=True)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.zero = Masked(CAUSAL), layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.zero(x, x, self.plain(x).transpose(1, 2).flatten(2), attn_mask=~CAUSAL)[0]

    found = trace_module(Both(), torch.randn(1, LENGTH, 32), GEOMETRY, prefix=PREFIX)
    assert list(found.layers) == ["plain"]
    assert found.skipped[0].startswith("zero: it has keys of its own")
    capped = Gemma2Model(
        Gemma2Config(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, head_dim=4, attn_logit_softcapping=2.0, layer_types=["full_attention"],
        ),
    ).eval()  # fmt: skip
    with pytest.raises(Exception, match="a soft cap on its logits"):
        trace_module(capped, {"input_ids": torch.randint(5, 32, (1, LENGTH)), "use_cache": False}, GEOMETRY, prefix=PREFIX)


class Stack(nn.Module):
    """A module with a compiled part."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Masked(CAUSAL), torch.compile(Masked(CAUSAL), backend="eager")])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x).transpose(1, 2).flatten(2)
        return x


def test_a_compiled_module_is_seen_as_it_was_written() -> None:
    torch.manual_seed(0)
    plain, x = Masked(alibi()[None]), torch.randn(2, LENGTH, 32)
    expected = trace_module(plain, x, GEOMETRY, prefix=PREFIX).table
    compiled = torch.compile(plain, backend="eager")
    found = trace_module(compiled, x, GEOMETRY, prefix=PREFIX)
    assert found.table.equals(expected)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in compiled.modules())
    assert not any(name.startswith("_headscope") for part in compiled.modules() for name in vars(part))
    stack = Stack()
    assert list(trace_module(stack, x, GEOMETRY, prefix=PREFIX).layers) == ["blocks.0", "blocks.1"]
    assert not any(part._forward_hooks for part in stack.modules())


def test_two_threads_that_trace_one_imagegpt_leave_it_as_it_was_in_any_order() -> None:
    model = ImageGPTModel(ImageGPTConfig(vocab_size=32, n_embd=16, n_layer=1, n_head=4, n_positions=64)).eval()
    ids = torch.randint(5, 32, (1, LENGTH))
    counts = {"first": 0, "second": 0}
    begun, ended = threading.Event(), threading.Event()

    def second() -> None:
        with attach(model, lambda *_: counts.__setitem__("second", counts["second"] + 1)):
            begun.set()
            ended.wait(10)
            model(input_ids=ids, use_cache=False)

    other = threading.Thread(target=second)
    with attach(model, lambda *_: counts.__setitem__("first", counts["first"] + 1)):
        other.start()
        begun.wait(10)
        model(input_ids=ids, use_cache=False)
    ended.set()  # the first to begin has ended; the second goes on
    other.join(10)
    assert counts == {"first": 1, "second": 1}
    attention = model.h[0].attn
    assert not {"_attn", "_upcast_and_reordered_attn", "_headscope_watchers"} & vars(attention).keys()


def test_compiled_code_runs_again_after_blocks_that_end_in_the_order_they_began() -> None:
    compiled, x = torch.compile(Masked(CAUSAL), backend=(backend := Counted())), torch.randn(1, LENGTH, 32)
    compiled(x)
    first = attach(Masked(CAUSAL), lambda *_: None)
    second = attach(Masked(CAUSAL), lambda *_: None)
    first.__enter__()
    entered = backend.ran
    second.__enter__()
    first.__exit__(None, None, None)
    compiled(x)
    assert backend.ran == entered  # the second block is still open
    second.__exit__(None, None, None)
    compiled(x)
    assert backend.ran == entered + 1


class Counted:
    """A backend of torch.compile that counts its runs."""

    def __init__(self) -> None:
        self.ran = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable:
        def run(*args: torch.Tensor) -> object:
            self.ran += 1
            return graph.forward(*args)

        return run
