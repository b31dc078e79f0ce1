"""The recipe of the bundled model, on a model of a few thousand weights: what a stop, a seed and a later stage mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from headscope.errors import DataError
from headscope.recipe import attention, bf16, checkpoint, composing, stage
from headscope.recipe.composing import captions_to_ids
from headscope.recipe.configuration import build
from headscope.recipe.images import Stickers
from headscope.recipe.muon import MuonAdam
from headscope.recipe.plan import Plan
from headscope.recipe.presets import Preset
from headscope.recipe.stage import rate_factor
from headscope.recipe.tokenizer import build_tokenizer, special_ids
from headscope.recipe.transformer import token_losses, train_transformer
from headscope.recipe.warm_start import stages_of, take_over_vq
from headscope.storage import write_json
from tests.recipe.drawings import TINY, tiny_stickers

SIZE = TINY
Train = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def stickers() -> Stickers:
    return tiny_stickers()


@pytest.fixture(scope="module")
def tokenizer(stickers: Stickers) -> PreTrainedTokenizerFast:
    return build_tokenizer(stickers.concepts, 32)


@pytest.fixture
def train(stickers: Stickers, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Train:
    """Train in a folder of `tmp_path` and hand back the weights and the optimiser's state."""
    monkeypatch.setattr(bf16, "has_units", lambda device: False)  # nothing to compile

    def run(name: str, images: int, warm: Path | None = None, size: Preset = SIZE, seed: int = 0) -> dict[str, torch.Tensor]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if warm is not None and not (folder / "vq.safetensors").exists():
            take_over_vq(warm, folder)
        elif not (folder / "vq.safetensors").exists():
            torch.manual_seed(7)
            vq = build(size, len(tokenizer), special_ids(tokenizer)).model.vqmodel
            save_file({key: value.contiguous() for key, value in vq.state_dict().items()}, folder / "vq.safetensors")
        plan = Plan(folder, seed, images=images, warm_start=warm, minutes_between_checkpoints=0)
        train_transformer(0, size, stickers, tokenizer, plan)
        return load_file(folder / "transformer.safetensors")

    return run


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_seed_gives_its_weights_and_a_stop_changes_nothing(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train("whole", 20)
    assert same(train("again", 20), whole)
    assert not same(train("other", 20, seed=1), whole)
    save = checkpoint.save
    saved: list[int] = []

    def stop(parts: torch.nn.Module, optimiser: MuonAdam, path: Path, facts: dict[str, str]) -> None:
        save(parts, optimiser, path, facts)
        saved.append(int(facts["step"]))
        if saved == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train("stopped", 20)
    assert same(train("stopped", 20), whole)
    assert saved == [1, 2, 3, 4, 5]


def test_a_later_stage_goes_on_from_the_weights_and_sees_other_images(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    mixed_batch = composing.mixed_batch

    def watched(*arguments: object) -> object:
        batch = mixed_batch(*arguments)  # type: ignore[arg-type]
        seen.append(batch.pixels)
        return batch

    first = train("first", 8)
    write_json(tmp_path / "first" / "stages.json", [{"preset": "tiny", "images": 8}])
    monkeypatch.setattr(composing, "mixed_batch", watched)
    monkeypatch.setattr(stage, "rate_factor", lambda *_: 0.0)  # a step of nothing: what it went on from stands
    later = train("later", 4, warm=tmp_path / "first")
    assert stages_of(tmp_path / "later") == [{"preset": "tiny", "images": 8}]
    weights = {name for name in first if not name.startswith("optimiser.")}
    assert all(torch.equal(first[name], later[name]) for name in weights)
    train("first_again", 4)
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])


def test_other_sizes_are_no_place_to_go_on_from(train: Train, tmp_path: Path) -> None:
    train("narrow", 4)
    with pytest.raises(DataError, match="is missing or of another shape; go on from weights of the same preset's sizes"):
        train("wide", 4, warm=tmp_path / "narrow", size=replace(SIZE, intermediate=32))


def test_the_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    assert rate_factor(0.0, 0) == pytest.approx(1 / stage.WARM_STEPS)
    assert rate_factor(0.5, 500) == 1.0
    assert rate_factor(0.825, 825) == pytest.approx(0.5)
    assert rate_factor(1.0, 1000) == 0.0
    assert rate_factor(0.6, 600, stage.DECAY_FROM_LATER) == pytest.approx(0.5)


def test_a_dropped_prompt_becomes_pads_that_are_attended(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, mask = captions_to_ids(tokenizer, ["red apple, noto style", "star"], np.array([True, False]), "cpu")
    named = special_ids(tokenizer)
    assert ids[0].tolist() == [named["bos"], *[named["pad"]] * 5, named["boi"]]
    assert mask.tolist() == [[1] * 7, [0] * 4 + [1] * 3]
    assert ids[1, -1] == named["boi"]
    assert tokenizer.convert_ids_to_tokens(ids[1, 4:].tolist()) == ["<s>", "star", "<begin_of_image>"]


def test_the_loss_of_a_token_is_what_the_network_gives_it(tokenizer: PreTrainedTokenizerFast) -> None:
    """Against one pass a token, each with the tokens before it only."""
    torch.manual_seed(3)
    model = build(SIZE, len(tokenizer), special_ids(tokenizer)).eval()
    ids, mask = captions_to_ids(tokenizer, ["red apple", "star"], np.zeros(2, bool), "cpu")
    tokens = torch.randint(SIZE.codes, (2, SIZE.grid**2))
    with torch.no_grad():
        losses = token_losses(model, ids, mask, tokens)
        words = model.model.language_model.get_input_embeddings()(ids)
        for place in (0, 1, 7, 15):
            shown = words
            if place:
                shown = torch.cat([words, model.prepare_embeddings_for_image_generation(tokens[:, :place])], 1)
            attended = torch.cat([mask, mask.new_ones(2, place)], 1)
            hidden = model.model.language_model(inputs_embeds=shown, attention_mask=attended, use_cache=False)
            told = model.model.generation_head(hidden.last_hidden_state[:, -1]).log_softmax(-1)
            assert torch.allclose(losses[:, place], -told.gather(1, tokens[:, place : place + 1])[:, 0], atol=1e-4)
        attention.use(model.model.language_model)
        torch.testing.assert_close(token_losses(model, ids, mask, tokens), losses)
