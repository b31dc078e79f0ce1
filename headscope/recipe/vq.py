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

from headscope.recipe import parallel
from headscope.recipe.configuration import vq_configuration
from headscope.recipe.csv_log import Journal
from headscope.recipe.images import Stickers, sample_batch
from headscope.recipe.muon import MuonAdam
from headscope.recipe.presets import Preset
from headscope.storage import write_whole

CROPS_UNTIL = 0.85  # share of the steps that train on crops; the rest see whole images, as the norms will


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
            chance = nearest.clamp_min(0).double().numpy() + 1e-9
            pick = int(rng.choice(len(points), p=chance / chance.sum()))
            codes = torch.cat([codes, points[pick : pick + 1]])
            nearest = torch.minimum(nearest, 1 - points @ points[pick])
        vq.quantize.embedding.weight.copy_(codes)


def _crop(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A window of half the side, on the grid of tokens: four times cheaper, and most of what a code must learn is local."""
    side = pixels.shape[-1] // 2
    top, left = (4 * rng.integers(0, side // 4 + 1, size=2)).tolist()
    return pixels[:, :, top : top + side, left : left + side]


def _edges(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return image[..., 1:, :] - image[..., :-1, :], image[..., 1:] - image[..., :-1]


def image_loss(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Absolute error, squared error, and absolute error of the gradients, which keeps outlines sharp."""
    loss = (made - true).abs().mean() + (made - true).square().mean()
    for a, b in zip(_edges(made), _edges(true), strict=True):
        loss = loss + (a - b).abs().mean()
    return loss


def train_vq(rank: int, preset: Preset, stickers: Stickers, folder: Path, seed: int, device: str) -> None:
    """Train until `preset.vq_images` images were seen; writes `vq.safetensors` (rounded to bf16)."""
    torch.manual_seed(seed)
    vq = JanusVQVAE(vq_configuration(preset)).float().to(device)
    rng = np.random.default_rng([seed, rank, 1])
    train, held_out = stickers.indices(held_out=False), stickers.indices(held_out=True)
    test = sample_batch(stickers, np.resize(held_out, 64), np.random.default_rng([seed, 99]), device).pixels
    optimiser = MuonAdam(vq, preset.vq_rate, preset.adam_rate, weight_decay=0.0)
    if rank == 0:
        (folder / "vq.csv").unlink(missing_ok=True)  # of a run that was stopped: this one begins anew
    journal = Journal(folder / "vq.csv", rank)
    per_step = preset.vq_batch * parallel.world()
    steps = math.ceil(preset.vq_images / per_step)
    warm = max(1, steps // 10)  # plain autoencoder first, so that the codebook starts from meaningful directions
    used = torch.zeros(preset.codes, device=device)
    started = time.monotonic()
    for step in range(steps):
        pixels = sample_batch(stickers, rng.choice(train, preset.vq_batch), rng, device).pixels
        if step < steps * CROPS_UNTIL:
            pixels = _crop(pixels, rng)
        if step == warm:
            many = sample_batch(
                stickers, np.random.default_rng(seed).choice(train, 128), np.random.default_rng(seed + 1), device
            )
            _seed_codebook(vq, many.pixels, np.random.default_rng(seed + 2))
        if step < warm:
            made, inner, indices = _unquantised(vq, pixels), pixels.new_zeros(()), None
        else:
            made, inner, indices = reconstruct(vq, pixels)
        loss = image_loss(made, pixels) + inner
        loss.backward()
        parallel.average_gradients(optimiser.parameters)
        torch.nn.utils.clip_grad_norm_(optimiser.parameters, 1.0)
        optimiser.step(min(1.0, (step + 1) / 30) * min(1.0, 0.01 + 1.6 * (1 - step / steps)))
        vq.zero_grad(set_to_none=True)
        unit_codebook(vq)
        if indices is not None:
            used = 0.98 * used + torch.bincount(indices, minlength=preset.codes)
            if step % 50 == 0 and step < steps * 0.7:
                _revive(vq, pixels, used, seed + step)
        if step % 50 == 0 or step == steps - 1:
            with torch.no_grad():
                restored = reconstruct(vq, test)[0] if step >= warm else _unquantised(vq, test)
                psnr = float(-10 * torch.log10((restored.clamp(-1, 1) - test).square().mean() / 4 + 1e-12))
            journal.write(step=step, images=(step + 1) * per_step, loss=loss.item(), held_out_psnr=psnr,
                          codes_used=int((used > 0.5).sum()), seconds=time.monotonic() - started)  # fmt: skip
    if rank == 0:
        state = {name: value.to(torch.bfloat16).contiguous().cpu() for name, value in vq.state_dict().items()}
        write_whole(folder / "vq.safetensors", lambda path: save_file(state, path))


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
