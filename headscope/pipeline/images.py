"""Images into a folder: batches that fit into memory, each written when it is done, gone on with after a stop."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

from headscope.errors import BudgetError, DataError
from headscope.models import ImageModel, warn_of_unknown_words
from headscope.pipeline.needs import step_bytes
from headscope.policy import Policy, schedule
from headscope.progress import Progress, of_task
from headscope.reporting import contact_sheet
from headscope.runtime import AUTO, ImageBatches, Sampling, Variant, check_prefix, decoder_name, passed_over
from headscope.samples import Samples
from headscope.storage import read_json, write_json, write_parquet, write_whole
from headscope.words import size

FULL, POLICY = "full", "policy"
# Above this a larger batch is not faster on a CPU; a GPU gains until its memory is full.
MOST_ON_CPU = 64


# What a folder of images holds at its top, beside images.json.
_OURS = rf"\d{{4,}}\.png|sheet\.png|images\.parquet|tokens|{FULL}|{POLICY}"


@dataclass(frozen=True)
class Request:
    """What a folder of images is to hold.

    Attributes:
        prompts: texts.
        each: images of each prompt.
        sampling: guidance, temperature, top-k and the first image's seed; the model's own where they are not given.
        policy: of the cache; None keeps everything.
        compare: generate with the full cache too.
        decoder: "auto", or the name of the one that generates with the policy (without one: with the full cache).
    """

    prompts: tuple[str, ...]
    each: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    policy: Policy | None = None
    compare: bool = False
    decoder: str = AUTO

    @property
    def total(self) -> int:
        """Images with either cache."""
        return len(self.prompts) * self.each

    def variants(self) -> list[Variant]:
        """With the full cache, with the policy, or with both in this order; only one of them is told which decoder to use."""
        (seed,) = self.sampling.seeds(1)
        if self.policy is None:
            return [Variant(FULL, None, seed, self.decoder)]
        full = [Variant(FULL, None, seed)] if self.compare else []
        return [*full, Variant(POLICY, self.policy, seed, self.decoder)]


@dataclass(frozen=True)
class Plan:
    """How a folder of images is generated.

    Attributes:
        request: what it is to hold, sampling filled in.
        batch: images generated together.
        cache_bytes: of one image with the policy, or the full cache where there is none.
        full_bytes: of one image with the full cache.
        free: bytes free on the device.
        decoders: by variant, the name of the one that runs.
        passed_over: why a GPU's own decoder does not run the policy, where it does not.
        lengths: tokens of the shortest and of the longest prompt.
    """

    request: Request
    batch: int
    cache_bytes: int
    full_bytes: int
    free: int
    decoders: dict[str, str]
    passed_over: str | None = None
    lengths: tuple[int, int] = (0, 0)

    def sentence(self) -> str:
        """What the caches will take, and which decoder runs."""
        policy = self.request.policy
        largest = self.full_bytes if self.request.compare or policy is None else self.cache_bytes
        kept = "" if policy is None else f", {self.cache_bytes / self.full_bytes:.1%} of the full one with the policy"
        text = (
            f"cache: {size(largest)} an image{kept}; {self.batch} at a time take {size(self.batch * largest)} "
            f"of {size(self.free)} that are free; {self.decoded_by()}."
        )
        if self.passed_over is not None:
            text += f" The GPU's own is left aside: {self.passed_over}."
        if self.lengths[0] < self.lengths[1] and self.batch < self.request.total:
            text += f" Prompts have {self.lengths[0]} to {self.lengths[1]} tokens; those of one length are generated together."
        if policy is not None and policy.rows_at_once:
            plan = schedule(policy.shape.geometry, policy.lead)
            text += f" Rows follow each other by {policy.lead} columns: {len(plan) - 1:,} steps in place of "
            text += f"{policy.shape.geometry.tokens - 1:,}."
        elif policy is not None and self.batch == 1:  # reports/runtime: 1.1 to 1.15 times, for the weights are read anyway
            text += " One at a time, a policy saves memory and hardly any time; it pays when several are generated together."
        return text

    def decoded_by(self) -> str:
        """`decoder llama_cpu`, or of both caches."""
        if len(self.decoders) == 1:
            return f"decoder {next(iter(self.decoders.values()))}"
        return "decoders " + ", ".join(f"{name} ({kind})" for kind, name in self.decoders.items())


def plan_images(model: ImageModel, request: Request, *, free: int, batch: int | None = None) -> Plan:
    """Fit a batch into `free` bytes, before anything is generated.

    Args:
        model: the image model.
        request: what is asked for.
        free: bytes free on the device.
        batch: images generated together; None for as many as fit and help.

    Raises:
        BudgetError: not one image fits, or not so many as asked.
        CacheError: a prompt too long for the policy's limit.
        DataError: guidance, temperature or a seed out of range, or a decoder that cannot run here.
    """
    sampling, policy, texts = request.sampling.of(model), request.policy, request.prompts
    sampling.seeds(request.total)
    decoders = {kind.name: decoder_name(model, kind.policy, kind.decoder) for kind in request.variants()}
    warn_of_unknown_words(model, texts)
    encoded = model.tokenize(list(texts))
    prefix, streams = encoded.ids.shape[1], sampling.streams
    if policy is not None:
        check_prefix(policy, prefix, texts[int(encoded.mask.sum(1).argmax())])
    small = Variant(POLICY, policy).cache_bytes(model, prefix, streams)
    full = Variant(FULL).cache_bytes(model, prefix, streams)
    an_image = (full if request.compare else small) + step_bytes(model, prefix, streams)
    fits = free // an_image
    if fits < 1:
        raise BudgetError(
            f"An image of {model.name} takes {size(an_image)} beside the weights, {size(free)} are free: use a policy that "
            "keeps less, or another device."
        )
    if batch is not None and batch > fits:
        raise BudgetError(
            f"batch {batch}: takes {size(batch * an_image)}, {size(free)} are free; at most {fits} images fit: generate so "
            "many at a time."
        )
    most = MOST_ON_CPU if model.device.type == "cpu" else fits
    chosen = min(fits, most, request.total) if batch is None else batch
    aside, lengths = passed_over(model, policy) if policy else None, encoded.mask.sum(1)
    ends = int(lengths.min()), int(lengths.max())
    return Plan(replace(request, sampling=sampling), chosen, small, full, free, decoders, aside, ends)


def generate_images(model: ImageModel, plan: Plan, out: Path, progress: Progress | None = None) -> pd.DataFrame | None:
    """Generate what is missing: 0000.png ..., or with both caches full/0000.png, policy/0000.png, sheet.png, images.parquet.

    Image p * each + s is prompt p with seed `seed` + that number. Tokens are kept in tokens/, so that a stopped run loses a
    batch at most; images.json says what the folder holds, and which decoder it came from.

    Args:
        model: the image model.
        plan: see `plan_images`.
        out: the folder; goes on with what is there.
        progress: told of images, see `headscope.progress`.

    Returns:
        With both caches the table: index, prompt, seed, token_agreement.

    Raises:
        DataError: the folder holds other images.
    """
    _claim(model, plan, out)
    request = plan.request
    kinds = request.variants()
    found = {}
    for kind in kinds:
        folder = out / kind.name if len(kinds) > 1 else out
        what = f"{FULL} cache" if kind.name == FULL else kind.name
        parts: dict[int, Samples] = {}
        tell = of_task(progress, what, request.total)
        tokens = out / "tokens" / kind.name
        batches = ImageBatches(model, kind, request.prompts, request.each, tokens, request.sampling)
        for numbers, samples in batches.each(plan.batch):
            for place, number in enumerate(numbers):
                parts[number] = samples.select([place])
                if not (folder / f"{number:04d}.png").is_file():
                    save_png(model.to_images(parts[number].tokens)[0], folder / f"{number:04d}.png")
            tell(len(parts), request.total)
        found[kind.name] = parts
    return _compared(found[FULL], found[POLICY], out) if len(found) > 1 else None


def _claim(model: ImageModel, plan: Plan, out: Path) -> None:
    """Write images.json, or refuse a folder of other images."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose another folder.")
    request, file = plan.request, out / "images.json"
    wanted = _facts(model, plan)
    if file.is_file():
        held = read_json(file)
        if not isinstance(held, dict):
            raise DataError(
                f"{file}: no table of names and values, so what the folder holds is unknown; choose another folder."
            )
        # An earlier version did not name the decoder.
        differing = [name for name, value in wanted.items() if held.get(name) != value and (name != "decoder" or name in held)]
        fewer = isinstance(held.get("each"), int) and held["each"] < request.each
        more = differing == ["each"] and len(request.prompts) == 1 and fewer  # the images' numbers stay the same
        begun = any(out.rglob("*.png")) or any(out.rglob("*.parquet"))
        if differing and begun and not more:
            name = differing[0]
            there, asked = (_short(one.get(name)) for one in (held, wanted))
            raise DataError(f"{out}: holds images generated with {name} {there}, not {asked}; choose another folder.")
        if differing:
            write_json(file, wanted)
    elif (taken := _taken(out)) is not None:
        raise DataError(f"{out}: holds {taken} and no images.json that says whose it is; choose another folder.")
    else:
        write_json(file, wanted)


def _taken(out: Path) -> str | None:
    """The first name in `out` that images and their tables would be written to."""
    names = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    return next((name for name in names if re.fullmatch(_OURS, name)), None)


def _facts(model: ImageModel, plan: Plan) -> dict[str, Any]:
    """What images of one folder have in common."""
    request, sampling = plan.request, plan.request.sampling
    return {
        "model": model.name,
        "weights": model.shape.weights,
        "dtype": str(model.dtype).removeprefix("torch."),
        "decoder": plan.decoders,
        "policy": None if request.policy is None else request.policy.fingerprint(),
        "compare": request.compare,
        "prompts": list(request.prompts),
        "each": request.each,
        "seed": sampling.seeds(1)[0],
        "guidance": sampling.guidance,
        "temperature": sampling.temperature,
        **({"cfg_interval": sampling.cfg_interval} if sampling.cfg_interval != -1 else {}),
    }


def _short(value: Any) -> str:
    """A setting in a few words."""
    if isinstance(value, dict):
        value = list(value.values())
    text = ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _compared(full: dict[int, Samples], small: dict[int, Samples], out: Path) -> pd.DataFrame:
    """sheet.png and images.parquet of the samples by number."""
    rows, table = [], []
    for number, one in sorted(full.items()):
        rows.append((one.prompts[0], [_opened(out / kind / f"{number:04d}.png") for kind in (FULL, POLICY)]))
        agreement = (one.tokens == small[number].tokens).float().mean().item()
        table.append({"index": number, "prompt": one.prompts[0], "seed": int(one.seeds[0]), "token_agreement": agreement})
    contact_sheet(rows, ["full cache", "policy"], out / "sheet.png")
    found = pd.DataFrame(table)
    write_parquet(found, out / "images.parquet")
    return found


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except OSError:
        raise DataError(f"{path}: not a readable image; without that file the same command writes it.") from None


def save_png(image: torch.Tensor, path: Path) -> Path:
    """image: uint8 [height, width, 3]."""
    return write_whole(path, lambda target: Image.fromarray(image.numpy()).save(target, format="PNG"))
