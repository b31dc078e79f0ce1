"""Training the transformer: prompts and image tokens, images composed anew for every step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from headscope.errors import DataError
from headscope.recipe import attention, bf16, parallel
from headscope.recipe.configuration import build
from headscope.recipe.csv_log import Journal
from headscope.recipe.images import Batch, Stickers, sample_batch
from headscope.recipe.muon import MuonAdam
from headscope.recipe.presets import Preset
from headscope.recipe.scenes import SceneBook
from headscope.recipe.tokenizer import special_ids
from headscope.recipe.vq import encode, load_vq
from headscope.recipe.warm_start import earlier_weights, stages_of
from headscope.storage import write_whole

DROPPED = 0.1  # share of prompts replaced by pads, which is what guidance's unconditional stream sees
# The learning rate is constant until this share of the run, then falls to zero; a later stage has less to find out before.
DECAY_FROM, DECAY_FROM_LATER = 0.65, 0.2
WARM_STEPS = 40
NARROWING, NARROW = (0.58, 0.70), 0.4  # shares of the run between which `spread` falls from 1, and where it stays


@dataclass(frozen=True)
class Plan:
    """What a run is told: everything else stands in the preset."""

    folder: Path
    seed: int = 0
    device: str = "cpu"
    images: int | None = None  # instead of the preset's number
    warm_start: Path | None = None  # folder with the weights to go on from
    minutes_between_checkpoints: float = 4.0


def captions_to_ids(
    tokenizer: PreTrainedTokenizerFast, captions: list[str], dropped: np.ndarray, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and mask [b, prefix]; a dropped prompt becomes attended pads of its own length, as in `generate`."""
    ids = special_ids(tokenizer)
    batch = tokenizer([text + "<begin_of_image>" for text in captions], padding=True, return_tensors="pt")
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    words = (tokens != ids["bos"]) & (tokens != ids["boi"])
    tokens = torch.where(words & torch.from_numpy(dropped)[:, None], ids["pad"], tokens)
    return tokens.to(device), mask.to(device)


def token_losses(
    model: JanusForConditionalGeneration, ids: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Nats of each image token given the prompt and the tokens before it: [b, N]."""
    inner = model.model
    words = inner.language_model.get_input_embeddings()(ids)
    image = model.prepare_embeddings_for_image_generation(tokens[:, :-1])
    full_mask = functional.pad(mask, (0, image.shape[1]), value=1)
    hidden = inner.language_model(
        inputs_embeds=torch.cat([words, image], 1), attention_mask=full_mask, use_cache=False
    ).last_hidden_state
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


def spread(done: float) -> float:
    """How far stickers range, `done` being the share of the run behind us: wide at first, for looks that carry over to any
    place; then narrowing, so that what is left of a short run goes into shapes."""
    begin, end = NARROWING
    return 1.0 - (1.0 - NARROW) * min(1.0, max(0.0, (done - begin) / (end - begin)))


def rate_factor(done: float, step: int, decay_from: float = DECAY_FROM) -> float:
    """Learning rate as a share of its peak, `done` being the share of the run behind us."""
    return min(1.0, (step + 1) / WARM_STEPS) * min(1.0, max(0.0, (1 - done) / (1 - decay_from)))


def train_transformer(rank: int, preset: Preset, stickers: Stickers, tokenizer: PreTrainedTokenizerFast, plan: Plan) -> None:
    """Train, log to `transformer.csv`, checkpoint to `transformer.safetensors`; a stopped run goes on where it was."""
    model = fresh_model(preset, tokenizer, plan.folder, plan.seed, plan.device).train()
    vq = model.model.vqmodel.eval()
    parts = trainable(model)
    if plan.warm_start is not None:
        _start_from(parts, plan.warm_start)
    optimiser = MuonAdam(parts, preset.rate, preset.adam_rate)
    checkpoint = plan.folder / "transformer.safetensors"
    step = _resume(parts, optimiser, checkpoint)
    total = plan.images or preset.images
    per_step = preset.batch * parallel.world()
    steps = -(-total // per_step)
    train = stickers.indices(held_out=False)
    book = SceneBook(stickers) if preset.scenes else None
    tests = {
        "unseen_pairs": _test_batch(stickers, stickers.indices(held_out=True), plan),
        "unseen_views": _test_batch(stickers, train, plan),
    }
    if book is not None:
        tests["scenes"] = book.sample_batch(48, np.random.default_rng([plan.seed, 8]), plan.device)
    journal = Journal(plan.folder / "transformer.csv", rank)
    started = saved = time.monotonic()
    first = step
    running = 0.0
    stage = [behind] if (behind := len(stages_of(plan.folder))) else []  # a later stage has other images
    narrowing = spread if plan.warm_start is None else (lambda _: NARROW)  # looks that carry over are learned already
    decay_from = DECAY_FROM if plan.warm_start is None else DECAY_FROM_LATER
    use_bf16 = bf16.has_units(plan.device)
    if use_bf16:
        bf16.fuse(model.model.language_model, plan.device)
    elif plan.device == "cpu":
        attention.use(model.model.language_model)
    while step < steps:
        rng = np.random.default_rng([plan.seed, rank, step, 2, *stage])
        batch = mixed_batch(preset, stickers, train, book, rng, plan.device, narrowing(step / steps))
        ids, mask = captions_to_ids(tokenizer, batch.captions, rng.random(preset.batch) < DROPPED, plan.device)
        tokens = encode(vq, batch.pixels)
        with torch.autocast(torch.device(plan.device).type, torch.bfloat16, enabled=use_bf16):
            loss = token_losses(model, ids, mask, tokens).mean()
        loss.backward()
        parallel.average_gradients(optimiser.parameters)
        nn.utils.clip_grad_norm_(optimiser.parameters, 1.0)
        optimiser.step(rate_factor(step / steps, step, decay_from))
        parts.zero_grad(set_to_none=True)
        running = loss.item() if step == first else 0.95 * running + 0.05 * loss.item()
        step += 1
        if step % 50 == 0 or step == steps:
            losses = (
                {name: _test_loss(model, tokenizer, test, plan.device) for name, test in tests.items()} if rank == 0 else {}
            )
            seconds = time.monotonic() - started
            journal.write(step=step, images=step * per_step, loss=running, **losses,
                          images_a_second=(step - first) * per_step / seconds, seconds=seconds)  # fmt: skip
        if rank == 0 and (time.monotonic() - saved > plan.minutes_between_checkpoints * 60 or step == steps):
            _save(parts, optimiser, step, checkpoint)
            saved = time.monotonic()


def mixed_batch(
    preset: Preset,
    stickers: Stickers,
    train: np.ndarray,
    book: SceneBook | None,
    rng: np.random.Generator,
    device: str,
    spread: float,
) -> Batch:
    """`preset.batch` fresh images: scenes for the preset's share, single stickers of any concept for the rest."""
    scenes = 0 if book is None else round(preset.batch * preset.scenes)
    batch = sample_batch(stickers, rng.choice(train, preset.batch - scenes), rng, device, spread)
    if book is None or scenes == 0:
        return batch
    more = book.sample_batch(scenes, rng, device, spread)
    return Batch(torch.cat([batch.pixels, more.pixels]), [*batch.captions, *more.captions])


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
def _test_loss(model: JanusForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, test: Batch, device: str) -> float:
    ids, mask = captions_to_ids(tokenizer, test.captions, np.zeros(len(test.captions), bool), device)
    return float(token_losses(model, ids, mask, encode(model.model.vqmodel, test.pixels)).mean())


def _save(parts: nn.Module, optimiser: MuonAdam, step: int, path: Path) -> None:
    state = {name: value.detach().cpu().contiguous() for name, value in parts.state_dict().items()}
    state |= {f"optimiser.{name}": value.cpu().contiguous() for name, value in optimiser.state.items()}
    write_whole(path, lambda target: save_file(state, target, metadata={"step": str(step)}))


def _resume(parts: nn.Module, optimiser: MuonAdam, path: Path) -> int:
    """Load a checkpoint if there is one; returns the steps it has behind it."""
    if not path.exists():
        return 0
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        step = int(file.metadata()["step"])
    state = load_file(path)
    parts.load_state_dict({name: value for name, value in state.items() if not name.startswith("optimiser.")})
    for name, buffer in optimiser.state.items():
        buffer.copy_(state[f"optimiser.{name}"])
    optimiser.step_count = step
    return step
