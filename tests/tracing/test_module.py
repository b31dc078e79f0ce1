"""Attention of families and of modules that headscope never saw equals their own eager maps; what can't be seen is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    ChameleonConfig,
    ChameleonModel,
    Emu3TextConfig,
    Emu3TextModel,
    GPT2Config,
    GPT2Model,
    ImageGPTConfig,
    ImageGPTModel,
    LlamaConfig,
    LlamaModel,
    Qwen3Config,
    Qwen3Model,
)

from headscope import trace_module
from headscope.errors import DataError
from headscope.geometry import Geometry
from headscope.tracing import Selection
from headscope.tracing.catalogue import STATISTICS
from tests.tracing.definitions import by_definition

GEOMETRY = Geometry(3, 4)
PREFIX, LENGTH = 3, 14  # 11 of 12 image tokens are fed
SMALL = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "llama": lambda: LlamaModel(LlamaConfig(**SMALL, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=4)),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=4, n_positions=64)),
    "emu3": lambda: Emu3TextModel(Emu3TextConfig(**SMALL, num_key_value_heads=2, pad_token_id=0)),
    "chameleon": lambda: ChameleonModel(
        ChameleonConfig(
            **SMALL,
            num_key_value_heads=4,
            vq_config={
                "base_channels": 32,
                "num_embeddings": 8,
                "embed_dim": 8,
                "channel_multiplier": [1],
                "num_res_blocks": 1,
            },
            vocabulary_map={"<image>": 4},
        )
    ),
    "imagegpt": lambda: ImageGPTModel(ImageGPTConfig(vocab_size=32, n_embd=16, n_layer=2, n_head=4, n_positions=64)),
}


@pytest.mark.parametrize("family", list(FAMILIES))
@torch.inference_mode()
def test_statistics_of_a_family_are_those_of_its_own_eager_maps(family: str) -> None:
    torch.manual_seed(1)
    model = FAMILIES[family]().eval()
    for name, parameter in model.named_parameters():  # peaky attention
        if parameter.dim() == 2 and "norm" not in name:
            parameter.mul_(12)
    ids = torch.randint(5, 32, (2, LENGTH))
    inputs = {"input_ids": ids, "use_cache": False}
    plain = model(**inputs).last_hidden_state
    found = trace_module(model, inputs, GEOMETRY, prefix=PREFIX)
    assert torch.equal(model(**inputs).last_hidden_state, plain)
    assert not found.skipped
    if family != "imagegpt":
        model.set_attn_implementation("eager")
    maps = model(**inputs, output_attentions=True).attentions
    assert len(found.layers) == len(maps) == 2
    assert all("0" in name or "1" in name for name in found.layers)
    for (name, sums), expected in zip(found.layers.items(), maps, strict=True):
        assert expected.amax() > 0.6
        for row in range(2):
            for head in range(4):
                attention = expected[row, head, PREFIX:].double().numpy()
                for statistic in ("sparsity_1", "row_above", "entropy", "mean_distance", "column_variance", "prefix_mass"):
                    value = float(STATISTICS[statistic](sums)[row, head])
                    assert value == pytest.approx(by_definition(attention, statistic, 4), abs=2e-5), (name, statistic)
    assert len(found.table) == 2 * 2 * 4
    assert set(STATISTICS) - {s.name for s in STATISTICS.values() if s.full} <= set(found.table.columns)


class Block(nn.Module):
    """Attention as somebody else writes it: fused projection, grouped queries, a mask of booleans or is_causal."""

    def __init__(self, mask: bool = False, causal: bool = True) -> None:
        super().__init__()
        self.mask, self.causal = mask, causal
        self.qkv = nn.Linear(16, 16 + 8 + 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).split([16, 8, 8], -1)
        q, k, v = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in (q, k, v))
        mask = None
        if self.mask:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
            mask = mask.tril() if self.causal else mask
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=self.causal and not self.mask, enable_gqa=True
        )
        return x + out.transpose(1, 2).flatten(2)


class Foreign(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("mask", [False, True])
def test_a_module_we_never_saw_is_traced_by_name(mask: bool) -> None:
    torch.manual_seed(0)
    module, x = Foreign(Block(mask), Block(mask)), 2 * torch.randn(2, LENGTH, 16)
    before = module(x)
    found = trace_module(module, x, GEOMETRY, prefix=PREFIX, selection=Selection(full=True))
    assert list(found.layers) == ["blocks.0", "blocks.1"]
    q, k, _ = module.blocks[0].qkv(x).split([16, 8, 8], -1)
    q, k = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in (q, k))
    logits = q @ k.repeat_interleave(2, 1).transpose(2, 3) / 2
    maps = logits.masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf).softmax(-1).detach()
    for head in range(4):
        attention = maps[1, head, PREFIX:].double().numpy()
        row = found.table.query(f"module == 'blocks.0' and sequence == 1 and head == {head}").iloc[0]
        for name in STATISTICS:
            np.testing.assert_allclose(row[name], by_definition(attention, name, 4), atol=1e-5, err_msg=name)
    assert torch.equal(module(x), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize("mask", [False, True])
def test_a_sequence_that_is_the_image_alone_is_traced(mask: bool) -> None:
    torch.manual_seed(0)
    tokens = GEOMETRY.tokens
    x = 2 * torch.randn(2, tokens, 16)
    found = trace_module(Foreign(Block(mask)), x, GEOMETRY, selection=Selection(full=True))
    (sums,) = found.layers.values()
    assert (sums.prefix, sums.fed) == (0, tokens)
    assert found.table["prefix_mass"].eq(0).all()
    np.testing.assert_allclose(found.table["first_token_mass"], sums.columns[..., 0].flatten() / tokens, atol=1e-6)
    short = trace_module(Foreign(Block(mask)), x[:, :-1], GEOMETRY, prefix=0)
    assert short.table["prefix_mass"].eq(0).all()


def test_what_cannot_be_traced_is_said_with_the_modules_name() -> None:
    x = torch.randn(1, LENGTH, 16)
    found = trace_module(Foreign(Block(), Block(mask=True, causal=False)), x, GEOMETRY, prefix=PREFIX)
    assert list(found.layers) == ["blocks.0"]
    assert found.skipped == ["blocks.1: its tokens look at later ones, so it is no causal decoder."]
    with pytest.raises(DataError, match="Linear made no call of scaled_dot_product_attention"):
        trace_module(nn.Linear(16, 16), x, GEOMETRY)
    with pytest.raises(DataError, match=r"blocks\.0: the sequence has 14 tokens"):
        trace_module(Foreign(Block()), x, Geometry(2, 3), prefix=PREFIX)


def test_hooks_come_off_after_an_exception() -> None:
    class Fails(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            super().forward(x)
            raise ValueError("a defect of the module")

    module = Foreign(Fails())
    with pytest.raises(ValueError, match="a defect of the module"):
        trace_module(module, torch.randn(1, LENGTH, 16), GEOMETRY, prefix=PREFIX)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert not any(hasattr(part, "_headscope_name") for part in module.modules())


def test_a_sliding_window_is_refused_in_words() -> None:
    class Slides(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (self.qkv(x)[..., a : a + 8].unflatten(-1, (-1, 4)).transpose(1, 2) for a in (0, 16, 24))
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril().triu(-3)
            functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return x

    with pytest.raises(DataError, match="sliding window"):
        trace_module(Foreign(Slides()), torch.randn(1, LENGTH, 16), GEOMETRY, prefix=PREFIX)


class _ByHand(nn.Module):
    """Attention written out, which no function shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ x.transpose(1, 2)).softmax(-1) @ x


class PlainAttention(_ByHand):
    """The same, under a name that says what it is."""


class _Mixed(nn.Module):
    """One attention that can be seen, one that can't, and one that is not causal."""

    def __init__(self) -> None:
        super().__init__()
        self.hand = PlainAttention()
        self.multi = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.unflatten(2, (2, 8)).transpose(1, 2)
        seen = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2).flatten(2)
        return self.multi(seen, seen, self.hand(x))[0]


def test_attention_that_runs_unseen_is_named_with_what_to_do() -> None:
    found = trace_module(_Mixed(), [torch.randn(1, LENGTH, 16)], GEOMETRY)
    assert len(found.layers) == 1
    hand, multi = sorted(found.skipped)
    assert hand.startswith("hand: PlainAttention")
    assert "scaled_dot_product_attention" in hand
    assert multi.startswith("multi: its tokens look at later ones")
