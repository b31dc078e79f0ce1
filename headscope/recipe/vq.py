"""Training the VQ model: `JanusVQVAE` of transformers, 4 x 4 pixels a token."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers.models.janus.modeling_janus import JanusVQVAE

from headscope.recipe import checkpoint, parallel
from headscope.recipe.composing import Cropped
from headscope.recipe.configuration import vq_configuration
from headscope.recipe.course import Course
from headscope.recipe.csv_log import Journal
from headscope.recipe.feed import Feed
from headscope.recipe.images import Stickers, sample_batch
from headscope.recipe.muon import MuonAdam
from headscope.recipe.pace import Pace, find_speed
from headscope.recipe.plan import Plan
from headscope.recipe.presets import Preset
from headscope.storage import write_whole

REVIVE_UNTIL = 0.7  # share of the steps in which unused codes start again
LATER = 1.6  # seconds of the mean step, as a multiple of the first ones': whole images are four times a crop


def unit_codebook(vq: JanusVQVAE) -> None:
    """Keep the rows of the codebook at unit norm: `get_codebook_entry` normalises, `quantize.forward` does not."""
    with torch.no_grad():
        weight = vq.quantize.embedding.weight
        weight.copy_(functional.normalize(weight, dim=-1))


def reconstruct(vq: JanusVQVAE, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Straight-through encode and decode; `JanusVQVAE.forward` decodes from indices, so its encoder learns nothing.

    Args:
        pixels: [b, 3, H, W] in -1..1.
    Returns:
        images [b, 3, H, W], the quantiser's own loss, code indices [b * grid * grid].
    """
    latent = vq.quant_conv(vq.encoder(pixels))
    quantised, loss, indices = vq.quantize(latent)
    return vq.decoder(vq.post_quant_conv(quantised)), loss, indices


def _unquantised(vq: JanusVQVAE, pixels: torch.Tensor) -> torch.Tensor:
    """Encode and decode without the codebook, on the unit sphere where it will lie."""
    return vq.decoder(vq.post_quant_conv(functional.normalize(vq.quant_conv(vq.encoder(pixels)), dim=1)))


@torch.no_grad()
def encode(vq: JanusVQVAE, pixels: torch.Tensor) -> torch.Tensor:
    """pixels [b, 3, H, W] in -1..1 -> image tokens int64 [b, grid * grid] in raster order."""
    latent = vq.quant_conv(vq.encoder(pixels)).permute(0, 2, 3, 1)
    codes = functional.normalize(vq.quantize.embedding.weight, dim=-1)
    return (latent @ codes.T).argmax(-1).flatten(1)  # unit codes: nearest = largest inner product


def _seed_codebook(vq: JanusVQVAE, pixels: torch.Tensor, rng: np.random.Generator) -> None:
    """Codes start as real encoder directions, spread by k-means++ sampling."""
    with torch.no_grad():
        latent = vq.quant_conv(vq.encoder(pixels)).permute(0, 2, 3, 1).flatten(0, 2)
        points = functional.normalize(latent, dim=-1)
        points = points[torch.from_numpy(rng.permutation(len(points))[:16_384])]
        codes = points[:1]
        nearest = 1 - (points @ codes.T).amax(-1)
        for _ in range(vq.quantize.num_embeddings - 1):
            chance = nearest.clamp_min(0).double().cpu().numpy() + 1e-9
            pick = int(rng.choice(len(points), p=chance / chance.sum()))
            codes = torch.cat([codes, points[pick : pick + 1]])
            nearest = torch.minimum(nearest, 1 - points @ points[pick])
        vq.quantize.embedding.weight.copy_(codes)


def _edges(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return image[..., 1:, :] - image[..., :-1, :], image[..., 1:] - image[..., :-1]


def image_loss(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Absolute error, squared error, and absolute error of the gradients, which keeps outlines sharp."""
    loss = (made - true).abs().mean() + (made - true).square().mean()
    for a, b in zip(_edges(made), _edges(true), strict=True):
        loss = loss + (a - b).abs().mean()
    return loss


def train_vq(rank: int, preset: Preset, stickers: Stickers, plan: Plan) -> None:
    """Train until `preset.vq_images` images were seen, or for the plan's seconds; writes `vq.safetensors` (rounded to bf16).

    Only a run with a limit of seconds writes checkpoints; others begin anew after a stop.
    """
    torch.manual_seed(plan.seed)
    vq = JanusVQVAE(vq_configuration(preset)).float().to(plan.device)
    held_out = stickers.indices(held_out=True)
    test = sample_batch(stickers, np.resize(held_out, 64), np.random.default_rng([plan.seed, 99]), plan.device).pixels
    optimiser = MuonAdam(vq, preset.vq_rate, preset.adam_rate, weight_decay=0.0)
    used = torch.zeros(preset.codes, device=plan.device)
    per_step = preset.vq_batch * parallel.world()
    course = Course.of(plan, math.ceil(preset.vq_images / per_step))
    path = None if plan.seconds is None else plan.folder / "vq-checkpoint.safetensors"
    facts = {} if path is None else checkpoint.resume(vq, optimiser, path, {"used": used})
    course.go_on(facts)
    if rank == 0 and not facts:
        (plan.folder / "vq.csv").unlink(missing_ok=True)  # of a run that was stopped: this one begins anew
    journal = Journal(plan.folder / "vq.csv", rank, plan.lines, stage="vq")
    feed = _feed(rank, preset, stickers, plan, course)
    pace = Pace(feed, preset.vq_batch, plan.device)
    speed = find_speed(course, pace, plan.trial, LATER, tell=journal.note) if course.steps is None else iter(())
    with_codes = facts.get("with_codes") == "yes"
    started = saved = time.monotonic()
    for batch in feed:
        pixels, step = batch["pixels"], course.step
        steps = course.steps or math.inf
        # A plain autoencoder first, so that the codebook starts from meaningful directions.
        if not with_codes and course.steps is not None and (step >= max(1, course.steps // 10) or course.done >= 0.1):
            _seed_codebook(vq, _many(stickers, plan), np.random.default_rng(plan.seed + 2))
            with_codes = True
        with pace.step():
            loss = _step(vq, optimiser, pixels, used, course, with_codes)
        if with_codes and step % 50 == 0 and step < steps * REVIVE_UNTIL:
            _revive(vq, pixels, used, plan.seed + step)
        course.step += 1
        next(speed, None)
        over = course.over
        if over or course.due(step):
            journal.write(step=step, images=course.step * per_step, loss=loss.item(),
                          held_out_psnr=_psnr(vq, test, with_codes), codes_used=int((used > 0.5).sum()),
                          **({} if plan.loaders is None else pace.row()), seconds=time.monotonic() - started)  # fmt: skip
        if path is not None and time.monotonic() - saved > plan.minutes_between_checkpoints * 60:
            more = {"with_codes": "yes" if with_codes else "no"}
            checkpoint.save(vq, optimiser, path, course.facts() | more, {"used": used})
            saved = time.monotonic()
        if over:
            break
    if rank == 0:
        state = {name: value.to(torch.bfloat16).contiguous().cpu() for name, value in vq.state_dict().items()}
        write_whole(plan.folder / "vq.safetensors", lambda target: save_file(state, target))
        if path is not None:
            path.unlink(missing_ok=True)


def _feed(rank: int, preset: Preset, stickers: Stickers, plan: Plan, course: Course) -> Feed:
    by_training = plan.loaders is None
    device = plan.device if by_training else "cpu"
    compose = Cropped(preset, stickers, [plan.seed, rank, 1], device, in_turn=by_training)
    return Feed(compose, course, plan.device, plan.loaders)


def _many(stickers: Stickers, plan: Plan) -> torch.Tensor:
    """Images whose directions the codebook starts from."""
    chosen = np.random.default_rng(plan.seed).choice(stickers.indices(held_out=False), 128)
    return sample_batch(stickers, chosen, np.random.default_rng(plan.seed + 1), plan.device).pixels


def _step(
    vq: JanusVQVAE, optimiser: MuonAdam, pixels: torch.Tensor, used: torch.Tensor, course: Course, with_codes: bool
) -> torch.Tensor:
    """One step; `used`, float32 [codes], fades and counts the codes of this batch. Returns the loss, on its device.

    In float32 on a GPU too (its convolutions round to TF32): autocast would keep the norms, which take most of the time, in
    float32 anyway, and would round the distances to the codes.
    """
    if with_codes:
        made, inner, indices = reconstruct(vq, pixels)
        fresh = torch.zeros_like(used).index_add_(0, indices, torch.ones_like(indices, dtype=used.dtype))
        used.mul_(0.98).add_(fresh)
    else:
        made, inner = _unquantised(vq, pixels), pixels.new_zeros(())
    loss = image_loss(made, pixels) + inner
    loss.backward()
    parallel.average_gradients(optimiser.parameters)
    torch.nn.utils.clip_grad_norm_(optimiser.parameters, 1.0)
    optimiser.step(min(1.0, (course.step + 1) / 30) * min(1.0, 0.01 + 1.6 * (1 - course.done)))
    vq.zero_grad(set_to_none=True)
    unit_codebook(vq)
    return loss.detach()


@torch.no_grad()
def _psnr(vq: JanusVQVAE, test: torch.Tensor, with_codes: bool) -> float:
    """Decibels of drawings that training never saw."""
    restored = reconstruct(vq, test)[0] if with_codes else _unquantised(vq, test)
    return float(-10 * torch.log10((restored.clamp(-1, 1) - test).square().mean() / 4 + 1e-12))


def _revive(vq: JanusVQVAE, pixels: torch.Tensor, used: torch.Tensor, seed: int) -> None:
    """Unused codes restart at encoder outputs; every process picks the same ones, from the first process' images."""
    dead = torch.nonzero(used < 0.05).flatten()
    with torch.no_grad():
        latent = functional.normalize(vq.quant_conv(vq.encoder(pixels)), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
        if parallel.world() > 1:
            torch.distributed.broadcast(dead_count := torch.tensor([len(dead)]), 0)
            dead = dead if len(dead) == int(dead_count) else dead.new_zeros(int(dead_count))
            torch.distributed.broadcast(dead, 0)
            torch.distributed.broadcast(latent := latent.contiguous(), 0)
        if not len(dead):
            return
        generator = torch.Generator().manual_seed(seed)
        picks = torch.randint(len(latent), (len(dead),), generator=generator)
        vq.quantize.embedding.weight[dead] = latent[picks]
        used[dead] = 1.0


def load_vq(preset: Preset, folder: Path, device: str = "cpu") -> JanusVQVAE:
    """The trained VQ model in float32 (its values are bf16 values, as shipped)."""
    vq = JanusVQVAE(vq_configuration(preset)).float()
    vq.load_state_dict({name: value.float() for name, value in load_file(folder / "vq.safetensors").items()})
    unit_codebook(vq)
    return vq.to(device).eval()
