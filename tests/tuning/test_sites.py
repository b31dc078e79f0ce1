"""Where heads write is found in decoders of any build, and losses of single heads are there what plain replays give."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from headscope.errors import DataError
from headscope.models import RasterModel
from headscope.models.janus import JanusModel
from headscope.runtime import generate
from headscope.tuning import Replay, SearchConfig, sensitivity_table
from headscope.tuning.measure.fisher import fisher_table
from headscope.tuning.measure.options import Option
from headscope.tuning.measure.single_head import SingleHeadLoss
from headscope.tuning.measure.sites import find_sites
from headscope.tuning.measure.table import FISHER, kind_for
from tests.models.test_plain import PROMPTS, Plain, Told, attend
from tests.models.test_raster import COLS, gpt2, llama, louder, model_of

OPTIONS = [Option(1), Option(2, 3)]


def neox() -> nn.Module:
    """Attention and MLP side by side."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=20,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
    )
    return louder(GPTNeoXForCausalLM(config))


class Bare(nn.Module):
    """Heads that write into their matrix in the module that holds everything; positions are told."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(21, 32), nn.Embedding(20, 32)
        self.qkv = nn.ModuleList(nn.Linear(32, 96) for _ in range(3))
        self.out = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.mlps, self.head = nn.ModuleList(nn.Linear(32, 32) for _ in range(3)), nn.Linear(32, 20)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) + self.places(positions)
        for qkv, out, mlp in zip(self.qkv, self.out, self.mlps, strict=True):
            q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in qkv(x).chunk(3, -1))
            x = x + out(attend(q, k, v).transpose(1, 2).flatten(2))
            x = x + mlp(x).relu()
        return self.head(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


def plain() -> nn.Module:
    torch.manual_seed(0)
    return louder(Plain(attend))


def told() -> nn.Module:
    torch.manual_seed(0)
    return louder(Told(attend))


def replay_of(network: nn.Module, quieter: float = 1.0) -> Replay:
    """Two images of prompts of unlike lengths, under guidance."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(quieter)
    model = model_of(network, prompts={"cat": [16], "dog": [17, 2, 0]}, unconditional=[1], guidance=2.0)
    return Replay(model, generate(model, ["cat", "dog"], 0), by_stream=False)


@pytest.mark.parametrize("make", [gpt2, llama, neox, plain, told])
def test_a_head_alone_loses_what_a_plain_replay_says(make: Callable[[], nn.Module]) -> None:
    replay = replay_of(make())
    alone = SingleHeadLoss(replay, COLS, 1)
    assert alone.shortcut
    shape = replay.model.shape
    for option, layer, head in itertools.product(OPTIONS, range(shape.layers), (0, shape.kv_heads - 1)):
        exact = alone._plain(layer, [head], option)
        assert exact > 1e-4
        assert alone._short(layer, [head], option) == pytest.approx(exact, rel=1e-3)
    assert alone._may_skip()


def test_blocks_that_are_not_all_that_states_go_through_are_not_skipped() -> None:
    """Attention and MLPs in lists of their own: what goes on beside them is no block's."""

    class Beside(Bare):
        """Attention in modules of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.attentions = nn.ModuleList(Attention() for _ in range(3))

        def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            x = self.words(tokens) + self.places(positions)
            for attention, mlp in zip(self.attentions, self.mlps, strict=True):
                x = x + attention(x)
                x = x + mlp(x).relu()
            return self.head(x)

    replay = replay_of(louder(Beside()))
    alone = SingleHeadLoss(replay, COLS, 1)
    for layer in range(3):
        exact = alone._plain(layer, [1], Option(1))
        assert alone._short(layer, [1], Option(1)) == pytest.approx(exact, rel=1e-3)
    assert alone.shortcut
    assert not alone._may_skip()


@pytest.mark.parametrize("make", [gpt2, plain])
def test_the_table_by_gradients_is_in_the_order_of_exact_losses(make: Callable[[], nn.Module]) -> None:
    replay = replay_of(make(), quieter=0.6)  # what loses little is what gradients see
    assert kind_for("auto", replay.model) == FISHER
    options = [Option(0), Option(1), Option(3), Option(2, 3)]
    table = fisher_table(replay, options, COLS, samples=16)
    alone = SingleHeadLoss(replay, COLS)
    exact = [alone._plain(row.layer, [row.kv_head], Option(row.window, row.heavy)) for row in table.itertuples()]
    assert spearmanr(exact, table["loss"]).statistic > 0.9


def test_an_image_model_of_a_users_own_gets_a_table_by_gradients() -> None:
    made = sensitivity_table(replay_of(gpt2(), quieter=0.6), "fisher", count=4)
    assert made.kind == FISHER
    assert "8 cells measured exactly" in made.sentence()
    assert SearchConfig().table == "auto"


def test_sites_are_where_the_family_has_them(tiny: JanusModel) -> None:
    found: Any = find_sites(tiny)
    assert found.projections == [layer.self_attn.o_proj for layer in tiny.decoder.layers]
    assert found.blocks == list(tiny.decoder.layers)
    network: Any = gpt2()
    found = find_sites(model_of(network))
    assert found.projections == [block.attn.c_proj for block in network.transformer.h]
    assert found.blocks == list(network.transformer.h)
    torch.manual_seed(0)
    network = Plain(attend)
    found = find_sites(model_of(network, prompts=PROMPTS))
    assert found.projections == [block.out for block in network.blocks]
    assert found.whole_rows


@pytest.mark.parametrize("network", [Plain(None), Bare()], ids=["matrix without a module", "no block around a layer"])
def test_where_heads_do_not_write_into_a_module_the_sentence_stays(network: nn.Module) -> None:
    model: RasterModel = model_of(network, prompts=PROMPTS)
    assert find_sites(model) is None
    replay = Replay(model, generate(model, ["cat", "dog"], 0), by_stream=False)
    with pytest.raises(DataError, match=r"its heads do not write into a matrix that is a module.*; take another kind of table"):
        sensitivity_table(replay, "fisher")
    assert not SingleHeadLoss(replay, COLS).shortcut
    assert kind_for("auto", model) != FISHER
