"""Attention in blocks is attention: against one query at a time, in float64, forwards and backwards."""

from __future__ import annotations

import torch
from hypothesis import given, settings, strategies as st

from headscope.recipe.attention import BLOCK, CausalBlocks, padded, without_padding
from headscope.recipe.configuration import build
from headscope.recipe.tokenizer import special_ids
from tests.recipe.drawings import TINY, tiny_tokenizer


def slowly(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, first: list[int], scaling: float) -> torch.Tensor:
    """One query of one row and head at a time; zeros at the padding."""
    output = []
    for row, begin in enumerate(first):
        for head in range(query.shape[1]):
            for at in range(query.shape[2]):
                seen = slice(begin, at + 1)
                weights = torch.softmax(key[row, head, seen] @ query[row, head, at] * scaling, 0)
                output.append(weights @ value[row, head, seen] if at >= begin else torch.zeros_like(query[0, 0, 0]))
    return torch.stack(output).view_as(query)


@settings(max_examples=12, deadline=None)
@given(
    length=st.sampled_from([1, 2, 37, BLOCK, BLOCK + 1, 2 * BLOCK + 5]),
    heads=st.integers(1, 3),
    padding=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_output_and_gradients_are_those_of_one_query_at_a_time(length: int, heads: int, padding: list[int], seed: int) -> None:
    first = [min(begin, length - 1) for begin in padding]
    generator = torch.Generator().manual_seed(seed)
    shape = (len(first), length, heads, 4)  # as a model has it: heads beside each other, then transposed
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).transpose(1, 2).requires_grad_() for _ in range(3)]
    weights = torch.randn(len(first), heads, length, 4, generator=generator, dtype=torch.float64)
    for row, begin in enumerate(first):
        weights[row, :, :begin] = 0
    wanted, found = slowly(*inputs, first, 0.7), CausalBlocks.apply(*inputs, first, 0.7)
    torch.testing.assert_close(found, wanted)
    expected = torch.autograd.grad((wanted * weights).sum(), inputs)
    for mine, theirs in zip(torch.autograd.grad((found * weights).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_it_stays_in_float32_where_products_are_in_bfloat16() -> None:
    inputs = [
        torch.randn(1, 2, 37, 4, generator=torch.Generator().manual_seed(n)).bfloat16().requires_grad_() for n in range(3)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        found = CausalBlocks.apply(*inputs, [0], 0.7)
        gradients = torch.autograd.grad(found.sum(), inputs)
    exact = [one.detach().float().requires_grad_() for one in inputs]
    wanted = CausalBlocks.apply(*exact, [0], 0.7)
    torch.testing.assert_close(found, wanted)
    for mine, theirs in zip(gradients, torch.autograd.grad(wanted.sum(), exact), strict=True):
        torch.testing.assert_close(mine, theirs.bfloat16())


def test_rows_whose_padding_is_moved_to_the_end_need_no_mask() -> None:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(1)
    decoder = build(TINY, len(tokenizer), special_ids(tokenizer)).model.language_model
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
    gradients = []
    for way in (padded, without_padding):
        torch.manual_seed(2)
        inputs = torch.randn(3, 6, TINY.hidden, requires_grad=True)
        hidden = way(decoder, inputs, mask) * mask[..., None]
        gradients.append((hidden.detach(), *torch.autograd.grad(hidden.square().sum(), inputs)))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
