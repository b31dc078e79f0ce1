"""Any decoder-only network of transformers that draws an image token by token, row by row: a model of one's own.

From Python, `RasterModel` around the network; from the command line, a folder with the network in transformers' format and
beside it `headscope.toml` (card.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, LlamaModel

from headscope.errors import DataError, HeadscopeError, ModelError
from headscope.facts import clipped, said, shown
from headscope.geometry import Geometry
from headscope.models.card import read_card
from headscope.models.checkpoint import check_room, weight_files
from headscope.models.expected import kind_of
from headscope.models.fingerprint import weights_fingerprint
from headscope.models.image_codes import ImageCodes, token_list
from headscope.models.loading import Placed, check_whole
from headscope.models.network import NetworkModel
from headscope.models.plain import PlainNetwork
from headscope.models.protocol import Prefix
from headscope.models.ranges import check_ranges
from headscope.models.row_ends import NEVER
from headscope.models.tokens import check_prompts
from headscope.policy import ModelShape

CELL = 8  # pixels of a token's side where nothing better is known


class RasterModel(NetworkModel):
    """An `ImageModel` (see protocol.py) over a decoder-only network whose vocabulary holds image codes.

    A base class: what differs, `prompt_tokens`, `embed_prefix`, `embed_tokens`, `logits`, `to_images`, is a subclass's to say.

    Args:
        network: a `...ForCausalLM` of transformers, or in plain PyTorch tokens int64 [B, T] -> logits [B, T, words] (plain.py).
        name: what to call it.
        geometry: rows and columns of the image's tokens, and whether a token ends each row.
        codes: the first token that is an image code, and how many there are; or the token of every code, where they lie
            scattered (three at least).
        row_end: the token that ends each row, which is forced; it is the code after the last of `codes`.
        start: tokens before every image; without any the image is the whole sequence, and its first code is drawn evenly.
        prompts: by prompt, the tokens that take the place of `start`; without it prompts are only names of images.
        unconditional: tokens of the unconditional stream, one at least; without it there is no guidance.
        guidance: scale, 1 for none.
        temperature: what logits are divided by.
        top_k: how many codes are sampled from, None for all.
        pixels: codes int64 [B, N] of cells -> uint8 [B, height, width, 3]; by default a grey square a token, by its code.

    Attributes:
        reads_prompts: whether an image depends on its prompt; equal prompts are different images where it does not.
        starts: whether tokens come before the image.
        can_guide: whether there is another stream to guide by.

    Raises:
        ModelError: the network can't be driven, or numbers that do not fit it.
    """

    def __init__(
        self,
        network: Any,
        name: str,
        *,
        geometry: Geometry,
        codes: Sequence[int],
        row_end: int | None = None,
        start: Sequence[int] = (),
        prompts: Mapping[str, Sequence[int]] | None = None,
        unconditional: Sequence[int] | None = None,
        guidance: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        pixels: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        _check_kinds(name, network, geometry, prompts, pixels)
        self._start, self._pixels = token_list(name, "start", start), pixels
        self._prompts = {prompt: token_list(name, f"prompt {shown(prompt)}", ids) for prompt, ids in (prompts or {}).items()}
        self._unconditional = None if unconditional is None else token_list(name, "unconditional", unconditional)
        self._codes = ImageCodes(name, codes)
        self.row_end = None if row_end is None else token_list(name, "row_end", [row_end])[0]
        self.vocabulary = len(self._codes) + (row_end is not None)
        if not hasattr(network, "get_decoder"):
            rows = [self._start, *self._prompts.values(), self._unconditional or []]
            rows += [] if self.row_end is None else [[self.row_end]]
            network = PlainNetwork(network, name, self._trial(rows, geometry.tokens))
        super().__init__(network, name)
        self.counts_padding = isinstance(self.decoder, LlamaModel)  # whose rotary positions are relative
        heads, words = self.probe("a raster image model")
        self.guidance, self.temperature, self.top_k = guidance, temperature, top_k
        self.reads_prompts = bool(self._prompts) or type(self).prompt_tokens is not RasterModel.prompt_tokens
        self.can_guide = self._unconditional is not None
        self.starts = self.reads_prompts or bool(self._start)
        config = network.config
        self.max_prefix = int(config.max_position_embeddings) - geometry.tokens
        self._check(words, geometry)
        width = getattr(config, "hidden_size", heads["query_heads"] * heads["head_dim"])
        facts: tuple[object, ...] = ("raster", config.model_type, heads, width, self._codes.fact, geometry.rows, geometry.cols)
        facts += () if row_end is None else (row_end,)
        self.shape = ModelShape(
            name=name,
            **heads,
            geometry=geometry,
            architecture=hashlib.sha256(repr(facts).encode()).hexdigest(),
            weights=weights_fingerprint(self.decoder),
        )

    def _trial(self, rows: list[list[int]], tokens: int) -> torch.Tensor:
        """int64 [n, T], the longest of the rows with an image of random codes, then all tokens of the rows."""
        codes = torch.randint(0, len(self._codes), (tokens,), generator=torch.Generator().manual_seed(0))
        longest = [*max(rows, key=len), *self._codes.to_tokens(codes).tolist()]
        every = sorted({token for row in rows for token in row})
        every += every[:1] * (-len(every) % len(longest))
        return torch.tensor([*longest, *every], dtype=torch.int64).view(-1, len(longest))

    def _check(self, words: int, geometry: Geometry) -> None:
        """Refuse numbers that do not fit the network."""
        self._codes.check(words, self.row_end)
        if geometry.row_end != (self.row_end is not None):
            raise ModelError(
                f"{self.name}: {geometry.row_end} tokens end a row, and `row_end` is {self.row_end}; expected one token and "
                "its number, or neither."
            )
        rows: dict[str, Sequence[int]] = dict(self._prompts)
        if self.row_end is not None:
            rows["row_end"] = [self.row_end]
        if self._start or (self._unconditional is not None and not self._prompts):
            rows["start"] = self._start
        if self._unconditional is not None:
            rows["unconditional"] = self._unconditional
        tokens = self._words()
        for what, ids in rows.items():
            if not ids or not all(0 <= one < (tokens or one + 1) for one in ids):
                to = f" to {tokens - 1}" if tokens else ""
                raise ModelError(f"{self.name}: {what} {ids}: expected one token or more, from 0{to}.")
            if len(ids) > self.max_prefix:
                longest = self.max_prefix + geometry.tokens
                raise ModelError(
                    f"{self.name}: {what} and {geometry.tokens} image tokens are more than its {longest} positions."
                )
        check_ranges(self, self.name)
        self.guidance, self.temperature = float(self.guidance), float(self.temperature)
        if self.guidance != 1.0 and self._unconditional is None:
            raise ModelError(f"{self.name}: guidance {self.guidance:g} needs `unconditional`, the tokens of the other stream.")

    def _words(self) -> int | None:
        """Tokens that the network takes; None of a plain one, which was tried on all."""
        return getattr(self.network.get_input_embeddings(), "num_embeddings", None)

    def tokenize(self, prompts: list[str], length: int | None = None) -> Prefix:
        """See `ImageModel.tokenize`.

        Raises:
            DataError: a prompt that is none of the model's, where it has some, or one that is too long.
        """
        check_prompts(prompts)
        rows = [token_list(self.name, f"prompt {shown(prompt)}", self.prompt_tokens(prompt)) for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > self.max_prefix or (self.starts and not row):
                raise DataError(
                    f"prompt {shown(prompt)}: {len(row)} tokens, {self.name} takes {int(self.starts)} to {self.max_prefix} "
                    "before an image."
                )
            if row and not 0 <= min(row) <= max(row) < (self._words() or max(row) + 1):
                raise DataError(f"prompt {shown(prompt)}: tokens {shown(row)}, {self.name} has {self._words()} from 0 on.")
        other = [self._unconditional or row for row in rows]
        longest = max(length or 0, *(len(row) for row in [*rows, *other]))
        (ids, mask), (plain, plain_mask) = (self._padded(part, longest) for part in (rows, other))
        return Prefix(ids, mask, plain, plain_mask, list(prompts))

    def prompt_tokens(self, prompt: str) -> Sequence[int]:
        """Tokens before an image; a subclass whose prompts are more than names of `prompts` has its own.

        Args:
            prompt: as the user typed it.

        Raises:
            DataError: it is none of the model's.
        """
        if not self._prompts:
            return self._start
        if prompt not in self._prompts:
            some = ", ".join(list(self._prompts)[:5])
            raise DataError(f"prompt {clipped(ascii(prompt))}: {self.name} knows {len(self._prompts)} prompts, such as {some}.")
        return self._prompts[prompt]

    def _padded(self, rows: list[list[int]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = [(row[:1] or [0]) * (length - len(row)) + row for row in rows]
        mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
        return tuple(torch.tensor(part, dtype=torch.int64, device=self.device) for part in (ids, mask))  # type: ignore[return-value]

    def token_strings(self, ids: torch.Tensor) -> list[str]:
        """Tokens [P] as their numbers."""
        return [str(one) for one in ids.tolist()]

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image codes [B, T] -> [B, T, C]."""
        ids = self._codes.to_tokens(tokens)
        return self.embed_prefix(ids if self.row_end is None else torch.where(tokens == len(self._codes), self.row_end, ids))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [B, T, C] -> [B, T, V], of image codes alone; a cell is never the row end."""
        cells = self._codes.of_logits(self.network.get_output_embeddings()(hidden))
        return cells if self.row_end is None else functional.pad(cells, (0, 1), value=NEVER)

    def _painted(self, pixels: Callable[[torch.Tensor], torch.Tensor], cells: torch.Tensor) -> torch.Tensor:
        """What the user's own function makes of cells int64 [B, N]."""
        try:
            found: Any = pixels(cells)
        except HeadscopeError:
            raise
        except Exception as error:  # it is somebody else's
            raise ModelError(f"{self.name}: pixels failed with {type(error).__name__} ({said(error)}).") from error
        shape = tuple(getattr(found, "shape", ()))
        if not isinstance(found, torch.Tensor) or found.dtype != torch.uint8 or (len(shape), *shape[::3]) != (4, len(cells), 3):
            what = f"{found.dtype} {list(shape)}" if isinstance(found, torch.Tensor) else kind_of(found)
            raise ModelError(f"{self.name}: pixels gave {what}, expected uint8 [{len(cells)}, height, width, 3].")
        return found.cpu()

    def to_images(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image codes [B, N] -> uint8 [B, height, width, 3]."""
        geometry = self.shape.geometry
        grid = tokens.view(len(tokens), geometry.rows, geometry.row_length)[..., : geometry.cols]
        if self._pixels is not None:
            return self._painted(self._pixels, grid.flatten(1).long())
        grey = (grid.float() * (255 / max(len(self._codes) - 1, 1))).round().to(torch.uint8).cpu()
        return grey.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)[..., None].expand(-1, -1, -1, 3).contiguous()


def _check_kinds(name: str, network: Any, geometry: Any, prompts: Any, pixels: Any) -> None:
    """Refuse arguments of `RasterModel` that are something else altogether."""
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"{name}: expected a network, a ...ForCausalLM of transformers or a module of PyTorch from tokens to logits, "
            f"found {kind_of(network)}."
        )
    if not isinstance(geometry, Geometry):
        raise ModelError(f"{name}: geometry is {shown(geometry)}, expected headscope.Geometry(rows, cols).")
    if not isinstance(prompts, (Mapping, NoneType)):
        raise ModelError(f'{name}: prompts is {shown(prompts)}, expected tokens by prompt, such as {{"cat": [515]}}.')
    if pixels is not None and not callable(pixels):
        raise ModelError(f"{name}: pixels is {kind_of(pixels)}, expected a function of codes [B, N] to images.")


def load_raster(source: str | Path, name: str, device: str, dtype: torch.dtype) -> RasterModel:
    """Load a folder with a network of transformers and headscope.toml beside it."""
    card = read_card(Path(source))
    files = weight_files(Path(source))
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True)
        check_room(Path(source), files, lambda: AutoModelForCausalLM.from_config(config))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except ModelError:
        raise
    except Exception as error:  # what stands in a folder may fail in any way, in classes of several libraries
        raise ModelError(f"{source}: cannot be loaded as a decoder-only network ({said(error)}).") from error
    network, found = loaded
    aside = check_whole(source, found, ("",))
    model = RasterModel(network.to(device), name, **card)
    model.placed = Placed(len(network.state_dict()) - len(found["missing_keys"]), aside)
    return model
