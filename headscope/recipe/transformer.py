"""Training the transformer: prompts and image tokens, images composed anew for every step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from headscope.errors import DataError
from headscope.recipe import attention, bf16
from headscope.recipe.composing import Captioned, captions_to_ids
from headscope.recipe.configuration import build
from headscope.recipe.images import Batch, Stickers, sample_batch
from headscope.recipe.plan import Plan
from headscope.recipe.presets import Preset
from headscope.recipe.stage import DECAY_FROM, DECAY_FROM_LATER, Lesson, train_stage
from headscope.recipe.tokenizer import special_ids
from headscope.recipe.vq import encode, load_vq
from headscope.recipe.warm_start import earlier_weights, stages_of

PREFIX = 24  # tokens that prompts are padded to where workers compose them: one shape, which is compiled once


def token_losses(
    model: JanusForConditionalGeneration, ids: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Nats of each image token given the prompt and the tokens before it: [b, N]."""
    inner = model.model
    words = inner.language_model.get_input_embeddings()(ids)
    image = model.prepare_embeddings_for_image_generation(tokens[:, :-1])
    full_mask = functional.pad(mask, (0, image.shape[1]), value=1)
    decode = attention.without_padding if ids.is_cuda else attention.padded
    hidden = decode(inner.language_model, torch.cat([words, image], 1), full_mask)
    logits = inner.generation_head(hidden[:, ids.shape[1] - 1 :])
    return functional.cross_entropy(logits.transpose(1, 2).float(), tokens, reduction="none")


def trainable(model: JanusForConditionalGeneration) -> nn.ModuleDict:
    """The parts that learn here: the decoder and the image embeddings and head (not the VQ model, not the vision tower)."""
    inner = model.model
    return nn.ModuleDict(
        {
            "language_model": inner.language_model,
            "generation_embeddings": inner.generation_embeddings,
            "generation_aligner": inner.generation_aligner,
            "generation_head": inner.generation_head,
        }
    )


def fresh_model(
    preset: Preset, tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int, device: str
) -> JanusForConditionalGeneration:
    """Random transformer around the trained VQ model; image embeddings start as the codebook."""
    torch.manual_seed(seed)
    model = build(preset, len(tokenizer), special_ids(tokenizer))
    model.model.vqmodel.load_state_dict(load_vq(preset, folder).state_dict())
    with torch.no_grad():
        model.model.generation_embeddings.weight.copy_(model.model.vqmodel.quantize.embedding.weight)
        for layer in model.model.language_model.layers:  # every block starts as the identity
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    module: nn.Module = model
    module.to(device)
    return model


def train_transformer(rank: int, preset: Preset, stickers: Stickers, tokenizer: PreTrainedTokenizerFast, plan: Plan) -> None:
    """Train, log to `transformer.csv`, checkpoint to `transformer.safetensors`; a stopped run goes on where it was."""
    model = fresh_model(preset, tokenizer, plan.folder, plan.seed, plan.device).train()
    model.model.vqmodel.eval()
    parts = trainable(model)
    if plan.warm_start is not None:
        _start_from(parts, plan.warm_start)
    compose, batches = _data(rank, preset, stickers, tokenizer, plan)
    tests = {name: partial(_test_loss, model, tokenizer, test, plan) for name, test in batches.items()}
    decay_from = DECAY_FROM if plan.warm_start is None else DECAY_FROM_LATER
    lesson = Lesson(parts, model.model.language_model, _ready(model, plan.device), compose, tests, decay_from)
    train_stage(rank, preset, lesson, plan)


def _ready(model: JanusForConditionalGeneration, device: str) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """Choose how a decoder attends and multiplies here; returns the loss as a function of a batch."""
    decoder, vq = model.model.language_model, model.model.vqmodel
    use_bf16 = bf16.has_units(device)
    if use_bf16:
        bf16.fuse(decoder, device)
    elif device == "cpu":
        attention.use(decoder)

    def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        tokens = encode(vq, batch["pixels"])
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=use_bf16):
            return token_losses(model, batch["ids"], batch["mask"], tokens).mean()

    return loss_of


def _data(
    rank: int, preset: Preset, stickers: Stickers, tokenizer: PreTrainedTokenizerFast, plan: Plan
) -> tuple[Captioned, dict[str, Batch]]:
    """Images to learn from, and those to test on: pairs of concept and style, and places, that are new; scenes."""
    stage = [behind] if (behind := len(stages_of(plan.folder))) else []  # a later stage has other images
    compose = Captioned(
        preset,
        stickers,
        tokenizer,
        ([plan.seed, rank], [2, *stage]),
        plan.device if plan.loaders is None else "cpu",
        narrow=plan.warm_start is not None,  # looks that carry over are learned already
        multiple=None if plan.loaders is None else PREFIX,
    )
    tests = {
        "unseen_pairs": fixed_batch(stickers, stickers.indices(held_out=True), plan)[1],
        "unseen_views": fixed_batch(stickers, stickers.indices(held_out=False), plan)[1],
    }
    if compose.book is not None:
        tests["scenes"] = compose.book.sample_batch(48, np.random.default_rng([plan.seed, 8]), plan.device)
    return compose, tests


def _start_from(parts: nn.Module, folder: Path) -> None:
    earlier = earlier_weights(folder)[0]
    wanted = parts.state_dict()
    other = [name for name, value in wanted.items() if name not in earlier or earlier[name].shape != value.shape]
    if other:
        raise DataError(f"{folder}: {other[0]} is missing or of another shape; go on from weights of the same preset's sizes.")
    parts.load_state_dict({name: earlier[name] for name in wanted})


def fixed_batch(stickers: Stickers, indices: np.ndarray, plan: Plan) -> tuple[np.ndarray, Batch]:
    """The same 48 views of some drawings in every run of a seed, and which drawings they are."""
    rng = np.random.default_rng([plan.seed, 7, len(indices)])
    chosen = rng.choice(indices, 48)
    return chosen, sample_batch(stickers, chosen, rng, plan.device)


@torch.no_grad()
def _test_loss(model: JanusForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, test: Batch, plan: Plan) -> float:
    ids, mask = captions_to_ids(tokenizer, test.captions, np.zeros(len(test.captions), bool), plan.device)
    with bf16.plain() if plan.compiled else nullcontext():
        return float(token_losses(model, ids, mask, encode(model.model.vqmodel, test.pixels)).mean())
