"""Networks in plain PyTorch, without a cache of their own, give through headscope what their own full forward gives."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from headscope import trace_module
from headscope.errors import ModelError
from headscope.geometry import Geometry
from headscope.models import RasterModel
from headscope.pipeline.model_check import check_model
from headscope.policy import Policy
from headscope.runtime import CompressedCache, Sampling, compressed, generate
from headscope.tracing import watch
from headscope.tracing.catalogue import STATISTICS
from tests.models.test_raster import CODES, COLS, FIRST, ROWS, louder, slowly

HEADS, WIDTH, LENGTH = 4, 32, 20
WINDOW = 3
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
PROMPTS = {"cat": [20], "dog": [17, 2, 5]}  # 20 is in no output of the network


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    lower = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=lower, scale=0.5)


def flat(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return attend(*(part.flatten(0, 1) for part in (q, k, v))).unflatten(0, q.shape[:2])


def grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k[:, :2], v[:, :2], is_causal=True, enable_gqa=True)


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    later = torch.ones(q.shape[2], q.shape[2]).triu(1).bool()
    return (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).masked_fill(later, -torch.inf).softmax(-1) @ v


def everything(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, v)


def sliding(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    near = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril().triu(-4)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=near)


def windowed(start: int) -> Attend:
    """What a window keeps of the image after `start` tokens, as a mask over the whole sequence."""

    def seen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
        mask[:, start:] &= torch.ones_like(mask).triu(-WINDOW)[:, start:]
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return seen


class Block(nn.Module):
    """Attention in one of these ways, then an MLP."""

    def __init__(self, how: Attend | None) -> None:
        super().__init__()
        self.how, self.qkv, self.out = how, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.multi = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) if how is None else None
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.multi is not None:
            hidden = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            found = self.multi(x, x, x, attn_mask=hidden, is_causal=True)[0]
        else:
            q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            found = self.out(self.how(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[misc]
        return x + self.mlp(x + found)


class Plain(nn.Module):
    """Tokens to logits of all but the last of its words, with learned positions."""

    def __init__(self, how: Attend | None = attend) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(LENGTH + 1, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(Block(how), Block(how))
        self.head = nn.Linear(WIDTH, LENGTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.words(tokens) + self.places(torch.arange(tokens.shape[1]))))


class Encoder(Plain):
    """PyTorch's own layers."""

    def __init__(self, how: Attend | None) -> None:
        super().__init__(how)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, WIDTH, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(self.encoder(x, mask=hidden, is_causal=True))


class Told(Plain):
    """The same, told its positions, and with a loss beside its logits."""

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return self.head(self.blocks(self.words(tokens) + self.places(positions))), None


def made(kind: type[Plain] = Plain, how: Attend | None = attend) -> Plain:
    torch.manual_seed(0)
    return louder(kind(how))  # type: ignore[return-value]


def model_of(network: Any, **more: Any) -> RasterModel:
    settings = {"prompts": PROMPTS, "unconditional": [1], "guidance": 2.0, **more}
    return RasterModel(network, "mine", geometry=Geometry(ROWS, COLS), codes=(FIRST, CODES), **settings)


def own(network: nn.Module) -> Any:
    """The network's own forward, as `slowly` asks for it."""

    def forward(tokens: torch.Tensor) -> SimpleNamespace:
        found = network(tokens, torch.arange(tokens.shape[1])[None]) if isinstance(network, Told) else network(tokens)
        return SimpleNamespace(logits=found[0] if isinstance(found, tuple) else found)

    return forward


FORMS = {
    "scaled dot product": (Plain, attend),
    "a mask and a scale of its own": (Plain, masked),
    "heads in the batch": (Plain, flat),
    "grouped queries": (Plain, grouped),
    "nn.MultiheadAttention": (Plain, None),
    "nn.TransformerEncoder": (Encoder, attend),
    "told its positions": (Told, attend),
}


@pytest.mark.parametrize("form", FORMS)
def test_it_draws_what_its_own_full_forward_says(form: str) -> None:
    network = made(*FORMS[form])
    model = model_of(network)
    expected = [slowly(own(network), ids, [1], 2.0) for ids in PROMPTS.values()]
    everywhere = {"prefix": 3, "stride": COLS}
    last = ROWS * COLS - 1
    for numbers in (None, {"window": last}, {"window": 5, "heavy": last - 5}, {"heavy": last, "window": 0}):
        policy = None if numbers is None else Policy.uniform(model.shape, **everywhere, **numbers)
        found = generate(model, ["cat", "dog"], sampling=Sampling(temperature=0.0), policy=policy).tokens.tolist()
        assert found == expected, numbers
    assert model.shape.kv_heads == (2 if form == "grouped queries" else HEADS)
    assert [one.sentence() for one in check_model(model, ["cat", "dog"]) if one.wrong] == []


@pytest.mark.parametrize("kind", [Plain, Told])
def test_a_window_is_its_own_forward_under_a_mask(kind: type[Plain]) -> None:
    network, ids = made(kind), PROMPTS["dog"]
    model = model_of(network)
    codes = torch.randint(0, CODES, (1, ROWS * COLS), generator=torch.Generator().manual_seed(0))
    policy = Policy.uniform(model.shape, window=WINDOW, stride=COLS, prefix=3)
    cache = CompressedCache(policy, prefix=3)
    with torch.inference_mode(), compressed(model, policy):
        model.forward(model.embed_prefix(torch.tensor([ids])), None, cache)
        steps = [model.embed_tokens(codes[:, t : t + 1]) for t in range(ROWS * COLS - 1)]
        found = torch.cat([model.logits(model.forward(step, None, cache)) for step in steps], 1)
        for block in network.blocks:
            block.how = windowed(len(ids))
        expected = own(network)(torch.cat([torch.tensor([ids]), codes + FIRST], 1)).logits
    torch.testing.assert_close(found, expected[:, len(ids) : -1, FIRST : FIRST + CODES], atol=1e-4, rtol=1e-4)
    assert cache.nbytes() == 2 * 2 * WIDTH * 4 * (3 + WINDOW + 1)


def test_what_was_compiled_runs_as_it_was_written() -> None:
    network, plain = made(), model_of(made())
    policy = Policy.uniform(plain.shape, window=3, heavy=2, stride=COLS, prefix=3)
    expected = generate(plain, ["cat", "dog"], 0, policy=policy).tokens
    network.blocks[0] = torch.compile(network.blocks[0])
    for one in (network, torch.compile(made())):
        assert torch.equal(generate(model_of(one), ["cat", "dog"], 0, policy=policy).tokens, expected)


def test_its_statistics_are_those_of_the_module_alone() -> None:
    network = made()
    model = model_of(network, prompts=None, unconditional=None, guidance=1.0, start=[0, 1])
    samples = generate(model, ["a"], [3])
    seen = trace_module(
        network, torch.cat([torch.tensor([[0, 1]]), samples.tokens[:, :-1] + FIRST], 1), model.shape.geometry, prefix=2
    )
    for (number, layer), alone in zip(watch(model, samples).layers.items(), seen.layers.values(), strict=True):
        for name in ("sparsity_1", "row_above", "prefix_mass"):
            np.testing.assert_allclose(STATISTICS[name](layer.whole), STATISTICS[name](alone), atol=1e-5, err_msg=f"{number}")


class Mixing(Plain):
    """Tokens that see each other outside of attention."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found = super().forward(tokens)
        return found + found.cumsum(1)


def filled(value: float) -> Plain:
    """A network whose weights are all of this number."""
    network = made()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)
    return network


def test_a_head_of_zeros_makes_every_code_as_likely() -> None:
    model = model_of(filled(0.0))
    assert [finding.sentence() for finding in check_model(model, list(PROMPTS)[:2]) if finding.wrong] == []


class Last(Plain):
    """Logits of the last token alone."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens)[:, -1:]


@pytest.mark.parametrize(
    ("network", "more", "said"),
    [
        (lambda: made(how=by_hand), {}, r"made no call of scaled_dot_product_attention, .*: write its attention as scaled_dot"),
        (lambda: made(how=everything), {}, "other logits token by token .* expected causal attention"),
        (lambda: made(how=sliding), {}, "other logits token by token"),
        (lambda: nn.Identity(), {}, "Identity has no parameters"),
        (lambda: filled(float("nan")), {}, "gives NaN or infinite logits; look for such numbers in its weights"),
        (lambda: made(Mixing), {}, "nothing else that looks at other tokens"),
        (lambda: made(Last), {}, r"Last gave \(2, 1, 20\) for tokens \(2, 19\); expected logits"),
        (made, {"prompts": {"cat": [0] * 5}}, "cannot be driven: it takes no 21 tokens"),
        (made, {"prompts": {"cat": [21], "dog": [1, 2]}}, "cannot be driven"),
        (made, {"codes": (10, 12)}, "codes 10 to 21, its vocabulary has 20"),
        (lambda: "gpt", {}, r"expected a network, .* found a str"),
        (lambda: made().forward, {}, r"expected a network, .* found a method"),
    ],
)
def test_what_cannot_be_driven_is_said(network: Callable[[], Any], more: dict[str, Any], said: str) -> None:
    settings = {"geometry": Geometry(ROWS, COLS), "codes": (FIRST, CODES), "prompts": PROMPTS, **more}
    with pytest.raises(ModelError, match=said):
        RasterModel(network(), "mine", **settings)
