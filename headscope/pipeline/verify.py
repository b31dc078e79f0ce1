"""A report on a model by somebody who has its weights: twenty lines for an issue, without paths and prompts."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from headscope.errors import DataError
from headscope.facts import said
from headscope.models import ImageModel, told_without_path
from headscope.pipeline.memory import peak_bytes
from headscope.pipeline.model_check import check_model
from headscope.pipeline.needs import weight_bytes
from headscope.policy import CacheSpec
from headscope.progress import Progress, renamed
from headscope.provenance import machine, version_of
from headscope.runtime import Sampling, decoder_name, generate
from headscope.words import duration, percent, size

PACKAGES = ("torch", "transformers", "safetensors", "numpy")
IMAGES = 4
COMPARED = 2  # images that the family's own code generates too
# Beginning of a path: a drive or a slash, not one between words.
_PATH = re.compile(r"(?<![\w.)])(?:[A-Za-z]:\\|~?/)[^\s'\",;()]+")


@dataclass(frozen=True)
class Line:
    """A line of the report.

    Attributes:
        what: it is about.
        text: what was found.
        wrong: whether it is not as it should be.
    """

    what: str
    text: str
    wrong: bool = False

    def sentence(self) -> str:
        """For the terminal."""
        return f"{self.what:12} {self.text}"


def verify_model(model: ImageModel, prompts: Sequence[str], name: str, progress: Progress | None = None) -> Iterator[Line]:
    """Say what the model is and runs on, check it, generate with it, compare with the family's own code, and time it.

    Args:
        model: loaded.
        prompts: that it takes; some are used, none is told.
        name: that it was loaded by; a path is not told.
        progress: told of tokens, see `headscope.progress`.

    Raises:
        DataError: the model does not take these prompts.
    """
    four = [prompts[number % len(prompts)] for number in range(IMAGES)]
    try:
        model.tokenize(four)
    except DataError:
        raise
    except Exception:  # told below
        pass
    report = _Report(model, four, name, progress)
    yield from report.facts()
    for finding in check_model(model, list(prompts[:COMPARED]), "the model"):
        state = "WRONG" if finding.wrong is not None else "ok" if finding.known else "not known"
        text = f"{state}, {finding.what}" + (f": {finding.wrong}" if finding.wrong is not None else "")
        yield report.line("check", text, finding.wrong is not None)
    for what, look in report.looks():
        try:
            yield report.line(what, *look())
        except Exception as error:  # somebody else's code may fail in any way
            yield report.line(what, f"WRONG, failed with {type(error).__name__} ({said(error)})", True)


class _Report:
    """What is said of one model."""

    def __init__(self, model: ImageModel, prompts: list[str], name: str, progress: Progress | None) -> None:
        self.model, self.prompts, self.name, self.progress = model, prompts, name, progress
        self.seconds: float | None = None  # that four images took

    def line(self, what: str, text: str, wrong: bool = False) -> Line:
        """A line without paths and prompts."""
        for number, prompt in enumerate(self.prompts, 1):
            if len(prompt) > 1:
                text = re.sub(rf"(?<!\w){re.escape(prompt)}(?!\w)", f"prompt {number}", text)
        return Line(what, _PATH.sub("PATH", text), wrong)

    def facts(self) -> Iterator[Line]:
        """Versions, the machine, sizes and fingerprints: seven lines."""
        model, shape = self.model, self.model.shape
        here, grid = machine(model.device, model.dtype), shape.geometry
        packages = ", ".join(f"{package} {version_of(package)}" for package in ("headscope", *PACKAGES))
        ends = ", each row ended by a token" if grid.row_end else ""
        codes = "all codes" if model.top_k is None else f"the {model.top_k} likeliest codes"
        yield self.line("model", told_without_path(self.name))
        yield Line("versions", f"{packages}, Python {here['python']}")
        device = f"{here['device']} ({here['processor']}), threads {here['threads']}"
        yield Line("machine", f"{here['system']}, {device}, {here['dtype']}")
        yield Line(
            "decoder",
            f"{shape.layers} layers of {shape.query_heads} query and {shape.kv_heads} KV heads of {shape.head_dim} numbers, "
            f"prompts of at most {model.max_prefix} tokens",
        )
        yield Line("image", f"{grid.rows} x {grid.cols} tokens{ends}, {model.vocabulary} codes")
        yield Line("sampling", f"guidance {model.guidance:g}, temperature {model.temperature:g}, {codes}")
        yield Line("fingerprint", f"architecture {shape.architecture[:16]}, weights {shape.weights[:16]}")

    def looks(self) -> list[tuple[str, Callable[[], tuple[str, bool]]]]:
        """What is tried, and how: four lines."""
        return [("images", self.images), ("agreement", self.agreement), ("step", self.step), ("memory", self.memory)]

    def images(self) -> tuple[str, bool]:
        """Four images with the full cache; twice on a GPU, which is slower at first."""
        tell = renamed(self.progress, "generating four images")
        if self.model.device.type != "cpu":
            generate(self.model, self.prompts, 0)
        began = time.perf_counter()
        tokens = generate(self.model, self.prompts, 0, progress=tell).tokens
        self.seconds = time.perf_counter() - began
        pixels = self.model.to_images(tokens)
        digest = hashlib.sha256(tokens.numpy().astype("<i4").tobytes()).hexdigest()[:16]
        height, width = pixels.shape[1:3]
        return f"{IMAGES} of {width} x {height} pixels in {duration(self.seconds)}, tokens {digest}", False

    def agreement(self) -> tuple[str, bool]:
        """The likeliest tokens beside those of the family's own code."""
        own = getattr(self.model, "own_tokens", None)
        if own is None:
            return "nothing to compare with: transformers generates no images of this family", False
        prompts = self.prompts[:COMPARED]
        theirs = own(prompts).cpu()
        ours = generate(
            self.model,
            prompts,
            sampling=Sampling(temperature=0.0),
            progress=renamed(self.progress, "generating without chance"),
        ).tokens
        same = ours == theirs
        first = "" if bool(same.all()) else f", the first other token is number {int((~same).int().argmax(1).max()) + 1}"
        text = f"{percent(same.float().mean().item())} of {same.numel()} likeliest tokens are those of transformers' generate"
        # Rounding may turn a token in 16 bits, and all behind it.
        return text + first, self.model.dtype.itemsize > 2 and not bool(same.all())

    def step(self) -> tuple[str, bool]:
        """Time of a token of all images."""
        if self.seconds is None:
            return "not timed, for no image was generated", True
        each = 1e3 * self.seconds / self.model.shape.geometry.tokens
        return f"{each:.1f} ms for a token of {IMAGES} images, by decoder {decoder_name(self.model, None)}", False

    def memory(self) -> tuple[str, bool]:
        """What weights and cache take, and the most that was held."""
        model = self.model
        prefix = model.tokenize(self.prompts).ids.shape[1]
        cache = CacheSpec.of(model, prefix, batch=IMAGES).full_bytes
        on_gpu = model.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(model.device) if on_gpu else peak_bytes()
        of = "on the GPU" if on_gpu else "of the process"
        return f"weights {size(weight_bytes(model))}, cache of {IMAGES} images {size(cache)}, peak {size(peak)} {of}", False
