"""Models are checked for what headscope relies on: those that are right pass, each kind of wrong is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headscope.errors import DataError, ModelError
from headscope.geometry import Geometry
from headscope.models import Prefix, RasterModel, register_model, registry
from headscope.models.janus import JanusModel
from headscope.pipeline import run
from headscope.pipeline.model_check import check_model
from headscope.pipeline.verify import verify_model
from headscope.tuning import PromptConfig, RunConfig
from tests.cli.command import headscope
from tests.models.test_raster import CARD, gpt2, llama, model_of

PROMPTS = ["cat", "dog"]
NAMED = {"cat": [16], "dog": [17, 2]}


def wrongs(model: Any, prompts: list[str] = PROMPTS) -> dict[str, str]:
    """What was found wrong, by the first two words of what was tried."""
    return {" ".join(found.what.split()[:2]): found.wrong for found in check_model(model, prompts) if found.wrong is not None}


@pytest.mark.parametrize("make", [gpt2, llama])
def test_what_is_right_passes(make) -> None:
    assert wrongs(model_of(make(), prompts=NAMED, unconditional=[1], guidance=2.0)) == {}
    assert wrongs(model_of(make())) == {}


def test_janus_passes(tiny: JanusModel) -> None:
    assert wrongs(tiny, ["red apple", "a blue car on a red background"]) == {}


class Restarting(RasterModel):
    """Positions that begin anew in every call."""

    def forward(self, embeds: torch.Tensor, mask: torch.Tensor | None, cache: Any = None) -> torch.Tensor:
        positions = torch.arange(embeds.shape[1])[None].expand(len(embeds), -1)
        past = {self._cache: cache, "use_cache": cache is not None}
        return self.decoder(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, **past).last_hidden_state


class Forgetting(RasterModel):
    """The cache is not handed on."""

    def forward(self, embeds: torch.Tensor, mask: torch.Tensor | None, cache: Any = None) -> torch.Tensor:
        return super().forward(embeds, None if mask is None else mask[:, -embeds.shape[1] :], None)


class Looking(RasterModel):
    """Later tokens are seen, in more than the three tokens that construction looks at."""

    def forward(self, embeds: torch.Tensor, mask: torch.Tensor | None, cache: Any = None) -> torch.Tensor:
        found = super().forward(embeds, mask, cache)
        return found + embeds.mean(1, keepdim=True) if embeds.shape[1] > 3 else found


class PaddedRight(RasterModel):
    """Prompts are padded behind."""

    def tokenize(self, prompts: list[str], length: int | None = None) -> Prefix:
        found = super().tokenize(prompts, length)
        return replace(found, mask=found.mask.flip(1))


class Unmasked(RasterModel):
    """Padding is seen."""

    def forward(self, embeds: torch.Tensor, mask: torch.Tensor | None, cache: Any = None) -> torch.Tensor:
        return super().forward(embeds, None if mask is None else torch.ones_like(mask), cache)


class Wide(RasterModel):
    """Logits of the whole vocabulary."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.network.get_output_embeddings()(hidden)


class Pale(RasterModel):
    """Images without channels."""

    def to_images(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().to_images(tokens)[..., 0]


@pytest.mark.parametrize(
    ("kind", "what", "said"),
    [
        (Restarting, "token by", "look at positions"),
        (Forgetting, "token by", "hands its cache on"),
        (Looking, "a later", "apart in the hidden states before it"),
        (PaddedRight, "prompts become", "not padding on the left"),
        (Unmasked, "padding changes", "hidden states of 'cat', alone and beside another"),
        (Wide, "logits are", "logits of 20 codes, expected `vocabulary`, 12"),
        (Pale, "codes become", "expected uint8"),
    ],
)
def test_each_kind_of_wrong_is_told(kind: type[RasterModel], what: str, said: str) -> None:
    found = wrongs(made(kind))
    assert said in found[what], found


def test_a_run_of_ones_own_model_begins_with_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    register_model("mine", lambda device, dtype: made(Restarting))
    config = RunConfig(model="mine", prompts=PromptConfig(texts=("cat", "dog"), calibration=1, unseen=1))
    with pytest.raises(ModelError, match=r"^mine: token by token gives .* look at positions"):
        run(config, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "trace").exists()


def made(kind: type[RasterModel]) -> RasterModel:
    return kind(gpt2(), "mine", geometry=Geometry(4, 4), codes=(3, 12), start=[0], prompts=NAMED)


def test_heads_that_are_not_as_said_are_told() -> None:
    model = model_of(gpt2())
    model.shape = replace(model.shape, query_heads=8, kv_heads=8, head_dim=4)
    assert "of (4, 4, 8) query heads" in wrongs(model)["attention is"]


def test_attention_that_is_not_seen_is_told() -> None:
    model = model_of(gpt2())

    class Own(torch.nn.Module):
        """Attention of its own."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.config = inner, type(inner.config)()
            self.config._attn_implementation = "sdpa"

        def forward(self, **given: Any) -> Any:
            return self.inner(**given)

    model.decoder = Own(model.decoder)
    assert "transformers' attention interface" in wrongs(model)["attention is"]


def test_prompts_that_the_model_does_not_take_are_no_fault_of_it() -> None:
    model = model_of(gpt2(), prompts=NAMED)
    for look in (check_model, lambda *of: verify_model(*of, "mine")):
        with pytest.raises(DataError, match="prompt 'cow': mine knows 2 prompts"):
            list(look(model, ["cow", "cat"]))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ModelError, match="gave a dict without name, shape"):
        list(check_model({}, PROMPTS, "mine.py:load"))  # type: ignore[arg-type]


def test_the_command_says_each_thing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt2().save_pretrained(tmp_path)
    (tmp_path / "headscope.toml").write_text(CARD)
    found = headscope(capsys, monkeypatch, "models", "check", tmp_path, "--device", "cpu")
    assert found.status == 0
    assert found.out.count("ok  ") == 9
    assert f"has its place, none is left fresh: {len(gpt2().state_dict())}" in found.out
    assert "as it should be" in found.out
    monkeypatch.setattr(registry, "_registered", {"mine": lambda device, dtype: made(Unmasked)})
    found = headscope(capsys, monkeypatch, "models", "check", "mine", "--prompt", "cat", "--prompt", "dog")
    assert (found.status, "mine: 1 of these are wrong" in found.out) == (1, True)
    assert "-      its own code loaded the weights" in found.out


class Ending(RasterModel):
    """The end of a row is as likely as any cell."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.network.get_output_embeddings()(hidden)[..., : self.vocabulary]


def test_ends_of_rows_among_the_cells_are_told() -> None:
    rows = {"geometry": Geometry(4, 4, row_end=1), "codes": (0, 12), "row_end": 12, "start": [19]}
    assert wrongs(RasterModel(gpt2(), "mine", **rows)) == {}
    assert "code 12 gets up to 0." in wrongs(Ending(gpt2(), "mine", **rows))["a token"]
