"""Pictures into a folder: batches that fit into memory, each written when it is done, gone on with after a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

from headscope.errors import BudgetError, DataError
from headscope.models.protocol import ImageModel
from headscope.models.tokens import warn_of_unknown_words
from headscope.policy.policy import Policy
from headscope.reporting import contact_sheet
from headscope.runtime.batches import Variant, draw_variant
from headscope.runtime.cache import check_prefix
from headscope.runtime.generate import check_seeds, check_settings
from headscope.samples import Samples
from headscope.storage import read_json, write_json, write_whole

FULL, POLICY = "full", "policy"
_NAMES = {"each": "-n", "compare": "--compare", "weights": "other weights:"}
# Above this a larger batch is not faster on a CPU; a GPU gains until its memory is full.
MOST_ON_CPU = 64


@dataclass(frozen=True)
class Plan:
    """How a folder of pictures is drawn.

    Attributes:
        texts: prompts; each: pictures of each prompt. policy: of the cache, None for the full one.
        compare: draw with the full cache too. batch: pictures drawn together.
        cache_bytes: of one picture with the policy; full_bytes: with the full cache. free: bytes free on the device.
    """

    texts: tuple[str, ...]
    each: int
    seed: int
    policy: Policy | None
    compare: bool
    batch: int
    cache_bytes: int
    full_bytes: int
    free: int
    guidance: float
    temperature: float

    @property
    def total(self) -> int:
        """Pictures with either cache."""
        return len(self.texts) * self.each

    def sentence(self) -> str:
        """What the caches will take."""
        largest = self.full_bytes if self.compare or self.policy is None else self.cache_bytes
        kept = "" if self.policy is None else f", {self.cache_bytes / self.full_bytes:.1%} of the full one with the policy"
        text = (
            f"cache: {size(largest)} a picture{kept}; {self.batch} at a time take {size(self.batch * largest)} "
            f"of {size(self.free)} that are free."
        )
        if self.policy is not None and self.batch == 1:  # reports/runtime: 1.1 to 1.15 times, for the weights are read anyway
            text += " One at a time, a policy saves memory and hardly any time; it pays when several are drawn together."
        return text


def plan_pictures(
    model: ImageModel,
    texts: Sequence[str],
    *,
    free: int,
    each: int = 1,
    seed: int = 0,
    policy: Policy | None = None,
    compare: bool = False,
    batch: int | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
) -> Plan:
    """Fit a batch into `free` bytes, before anything is drawn.

    Args:
        batch: pictures drawn together; None for as many as fit and help.

    Raises:
        BudgetError: not one picture fits, or not so many as asked. CacheError: a prompt too long for the policy's limit.
        DataError: guidance, temperature or a seed out of range.
    """
    guidance = model.guidance if guidance is None else float(guidance)
    temperature = model.temperature if temperature is None else float(temperature)
    check_settings(guidance, temperature, None, model.vocabulary)
    check_seeds([text for text in texts for _ in range(each)], seed)
    warn_of_unknown_words(model, texts)
    streams = 1 if guidance == 1.0 else 2
    encoded = model.encode(list(texts))
    prefix = encoded.ids.shape[1]
    if policy is not None:
        check_prefix(policy, prefix, texts[int(encoded.mask.sum(1).argmax())])
    small = Variant(POLICY, policy).cache_bytes(model, prefix, streams)
    full = Variant(FULL).cache_bytes(model, prefix, streams)
    largest = full if compare or policy is None else small
    a_picture = largest + _work_bytes(model, prefix, streams)
    fits = free // a_picture
    if fits < 1:
        raise BudgetError(
            f"A picture of {model.name} takes {size(a_picture)} beside the weights, {size(free)} are free: use a policy that "
            "keeps less, or another device."
        )
    if batch is not None and batch > fits:
        raise BudgetError(
            f"--batch {batch}: takes {size(batch * a_picture)}, {size(free)} are free; at most {fits} pictures fit: use "
            f"--batch {fits}, or auto."
        )
    most = MOST_ON_CPU if model.device.type == "cpu" else fits
    chosen = min(fits, most, len(texts) * each) if batch is None else batch
    return Plan(
        tuple(texts),
        each,
        seed,
        policy,
        compare,
        chosen,
        small,
        full,
        free,
        guidance,
        temperature,
    )


def draw_pictures(
    model: ImageModel, plan: Plan, out: Path, progress: Callable[[str, int, int, float], None] | None = None
) -> pd.DataFrame | None:
    """Draw what is missing: 0000.png ..., or with both caches full/0000.png, policy/0000.png, sheet.png, pictures.parquet.

    Picture p * each + s is prompt p with seed `seed` + that number. Tokens are kept in tokens/, so that a stopped run loses a
    batch at most; pictures.json says what the folder holds.

    Returns:
        With both caches the table: index, prompt, seed, token_agreement.

    Raises:
        DataError: the folder holds other pictures.
    """
    _claim(model, plan, out)
    kinds = [Variant(POLICY, plan.policy, plan.seed)] if plan.policy is not None else []
    if plan.compare or plan.policy is None:
        kinds.insert(0, Variant(FULL, None, plan.seed))
    found = {}
    for kind in kinds:
        folder = out / kind.name if len(kinds) > 1 else out

        def tell(done: int, total: int, name: str = kind.name) -> None:
            if progress is not None:
                progress(f"{name} cache" if name == FULL else name, done, total, float("nan"))

        def done(numbers: Sequence[int], samples: Samples, folder: Path = folder) -> None:
            missing = [place for place, number in enumerate(numbers) if not (folder / f"{number:04d}.png").is_file()]
            for place in missing:
                save_png(model.to_images(samples.tokens[place : place + 1])[0], folder / f"{numbers[place]:04d}.png")

        found[kind.name] = draw_variant(
            model,
            kind,
            plan.texts,
            plan.each,
            out / "tokens" / kind.name,
            plan.batch,
            plan.guidance,
            tell,
            temperature=plan.temperature,
            drawn=done,
        )
    return _compared(found[FULL], found[POLICY], out) if len(found) > 1 else None


def _claim(model: ImageModel, plan: Plan, out: Path) -> None:
    """Write pictures.json, or refuse a folder of other pictures."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose a folder with --out.")
    wanted: dict[str, Any] = {
        "model": model.name,
        "weights": model.shape.weights,
        "dtype": str(model.dtype).removeprefix("torch."),
        "policy": None if plan.policy is None else plan.policy.fingerprint(),
        "compare": plan.compare,
        "prompts": list(plan.texts),
        "each": plan.each,
        "seed": plan.seed,
        "guidance": plan.guidance,
        "temperature": plan.temperature,
    }
    file = out / "pictures.json"
    if file.is_file():
        held = read_json(file)
        if not isinstance(held, dict):
            raise DataError(
                f"{file}: no table of names and values, so what the folder holds is unknown; choose another folder with --out."
            )
        differing = [name for name, value in wanted.items() if held.get(name) != value]
        fewer = isinstance(held.get("each"), int) and held["each"] < plan.each
        more = differing == ["each"] and len(plan.texts) == 1 and fewer  # the pictures' numbers stay the same
        begun = any(out.rglob("*.png")) or any(out.rglob("*.parquet"))
        if differing and begun and not more:
            name = differing[0]
            there, asked = (_short(one.get(name)) for one in (held, wanted))
            with_what = f"{_NAMES.get(name, name)} {there}, not {asked}"
            raise DataError(f"{out}: holds pictures drawn with {with_what}; choose another folder with --out.")
        if differing:
            write_json(file, wanted)
    elif (out / "0000.png").exists() or (out / "tokens").exists():
        raise DataError(f"{out}: holds pictures, but no pictures.json that says which; choose another folder with --out.")
    else:
        write_json(file, wanted)


def _short(value: Any) -> str:
    """A setting in a few words."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _compared(full: Samples, small: Samples, out: Path) -> pd.DataFrame:
    rows = []
    for number, prompt in enumerate(full.prompts):
        pair = [_opened(out / kind / f"{number:04d}.png") for kind in (FULL, POLICY)]
        rows.append((prompt, pair))
    contact_sheet(rows, ["full cache", "policy"], out / "sheet.png")
    agreement = (full.tokens == small.tokens).float().mean(1)
    facts = {"index": range(len(full)), "prompt": full.prompts, "seed": full.seeds.tolist()}
    table = pd.DataFrame({**facts, "token_agreement": agreement.tolist()})
    write_whole(out / "pictures.parquet", lambda path: table.to_parquet(path, index=False))
    return table


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except OSError:
        raise DataError(f"{path}: not a readable picture; without that file the same command writes it.") from None


def _work_bytes(model: ImageModel, prefix: int, streams: int) -> int:
    """What a picture needs beside its cache: the prompt's activations, and logits and noise of a step, generously."""
    width = model.shape.query_heads * model.shape.head_dim
    size = torch.empty((), dtype=model.dtype).element_size()
    return streams * (16 * prefix * width * size + 3 * 4 * model.vocabulary) + 4 * 4 * model.vocabulary


def save_png(picture: torch.Tensor, path: Path) -> Path:
    """picture: uint8 [height, width, 3]."""
    return write_whole(path, lambda target: Image.fromarray(picture.numpy()).save(target, format="PNG"))


def size(nbytes: int) -> str:
    """`12.3 MiB`."""
    value, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
