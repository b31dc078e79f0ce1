"""Training the transformer: prompts and image tokens, images composed anew for every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from headscope.errors import DataError
from headscope.recipe import attention, bf16, checkpoint, parallel
from headscope.recipe.composing import Captioned, captions_to_ids
from headscope.recipe.configuration import build
from headscope.recipe.course import Course
from headscope.recipe.csv_log import Journal
from headscope.recipe.feed import Feed
from headscope.recipe.images import Batch, Stickers, sample_batch
from headscope.recipe.muon import MuonAdam
from headscope.recipe.pace import Pace, find_speed, turn_on
from headscope.recipe.plan import Plan
from headscope.recipe.presets import Preset
from headscope.recipe.tokenizer import special_ids
from headscope.recipe.vq import encode, load_vq
from headscope.recipe.warm_start import earlier_weights, stages_of

# The learning rate is constant until this share of the run, then falls to zero; a later stage has less to find out before.
DECAY_FROM, DECAY_FROM_LATER = 0.65, 0.2
WARM_STEPS = 40
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


def rate_factor(done: float, step: int, decay_from: float = DECAY_FROM) -> float:
    """Learning rate as a share of its peak, `done` being the share of the run behind us."""
    return min(1.0, (step + 1) / WARM_STEPS) * min(1.0, max(0.0, (1 - done) / (1 - decay_from)))


def train_transformer(rank: int, preset: Preset, stickers: Stickers, tokenizer: PreTrainedTokenizerFast, plan: Plan) -> None:
    """Train, log to `transformer.csv`, checkpoint to `transformer.safetensors`; a stopped run goes on where it was."""
    model = fresh_model(preset, tokenizer, plan.folder, plan.seed, plan.device).train()
    model.model.vqmodel.eval()
    parts = trainable(model)
    if plan.warm_start is not None:
        _start_from(parts, plan.warm_start)
    optimiser = MuonAdam(parts, preset.rate, preset.adam_rate)
    path = plan.folder / "transformer.safetensors"
    per_step = preset.batch * parallel.world()
    course = Course.of(plan, -(-(plan.images or preset.images) // per_step))
    facts = checkpoint.resume(parts, optimiser, path)
    course.go_on(facts)
    feed, tests = _feed(rank, preset, stickers, tokenizer, plan, course)
    journal = Journal(plan.folder / "transformer.csv", rank, plan.lines, stage="transformer")
    pace = Pace(feed, preset.batch, plan.device)
    loss_of = _ready(model, plan.device)
    batch: dict[str, torch.Tensor] = {}
    compiled = bf16.Compiled(model.model.language_model, lambda: _try(parts, loss_of(batch))) if plan.compiled else None
    speed: Iterator[int] = iter(())
    if course.steps is None:
        speed = find_speed(course, pace, plan.trial, faster=compiled, tell=journal.note)
    elif compiled is not None and facts.get("compiled") == "yes":
        speed = turn_on(compiled)
    decay_from = DECAY_FROM if plan.warm_start is None else DECAY_FROM_LATER
    running = torch.zeros((), dtype=torch.float64)
    first, started = course.step, time.monotonic()
    saved = started
    for batch in feed:
        with pace.step():
            loss = _step(parts, optimiser, loss_of(batch), rate_factor(course.done, course.step, decay_from))
        # A number on the device, so that no step waits for it.
        running = loss.double() if course.step == first else 0.95 * running + 0.05 * loss.double()
        course.step += 1
        next(speed, None)
        over = course.over
        if over or course.due(course.step):
            losses = {name: _test_loss(model, tokenizer, test, plan) for name, test in tests.items()} if rank == 0 else {}
            seconds = time.monotonic() - started
            journal.write(step=course.step, images=course.step * per_step, loss=running.item(), **losses,
                          images_a_second=(course.step - first) * per_step / seconds,
                          **({} if plan.loaders is None else pace.row()), seconds=seconds)  # fmt: skip
        if rank == 0 and (over or time.monotonic() - saved > plan.minutes_between_checkpoints * 60):
            more = {"compiled": "yes" if compiled is not None and compiled.on else "no"}
            checkpoint.save(parts, optimiser, path, course.facts() | more)
            saved = time.monotonic()
        if over:
            break


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


def _step(parts: nn.Module, optimiser: MuonAdam, loss: torch.Tensor, factor: float) -> torch.Tensor:
    """Learn from a loss; returns it."""
    loss.backward()
    parallel.average_gradients(optimiser.parameters)
    nn.utils.clip_grad_norm_(optimiser.parameters, 1.0)
    optimiser.step(factor)
    parts.zero_grad(set_to_none=True)
    return loss.detach()


def _feed(
    rank: int, preset: Preset, stickers: Stickers, tokenizer: PreTrainedTokenizerFast, plan: Plan, course: Course
) -> tuple[Feed, dict[str, Batch]]:
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
        "unseen_pairs": _test_batch(stickers, stickers.indices(held_out=True), plan),
        "unseen_views": _test_batch(stickers, stickers.indices(held_out=False), plan),
    }
    if compose.book is not None:
        tests["scenes"] = compose.book.sample_batch(48, np.random.default_rng([plan.seed, 8]), plan.device)
    return Feed(compose, course, plan.device, plan.loaders), tests


def _try(parts: nn.Module, loss: torch.Tensor) -> None:
    """Forwards and backwards, without learning from it."""
    loss.backward()
    parts.zero_grad(set_to_none=True)


def _start_from(parts: nn.Module, folder: Path) -> None:
    earlier = earlier_weights(folder)[0]
    wanted = parts.state_dict()
    other = [name for name, value in wanted.items() if name not in earlier or earlier[name].shape != value.shape]
    if other:
        raise DataError(f"{folder}: {other[0]} is missing or of another shape; go on from weights of the same preset's sizes.")
    parts.load_state_dict({name: earlier[name] for name in wanted})


def _test_batch(stickers: Stickers, indices: np.ndarray, plan: Plan) -> Batch:
    rng = np.random.default_rng([plan.seed, 7, len(indices)])
    return sample_batch(stickers, rng.choice(indices, 48), rng, plan.device)


@torch.no_grad()
def _test_loss(model: JanusForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, test: Batch, plan: Plan) -> float:
    ids, mask = captions_to_ids(tokenizer, test.captions, np.zeros(len(test.captions), bool), plan.device)
    with bf16.plain() if plan.compiled else nullcontext():
        return float(token_losses(model, ids, mask, encode(model.model.vqmodel, test.pixels)).mean())
