"""What flan-t5-xl makes of captions: computed here where it is there, or read from a file."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, T5EncoderModel

from headscope.errors import DataError, ModelError
from headscope.facts import said, shown
from headscope.models.tokens import check_spaces
from headscope.storage import read_lines, write_whole

_FLOATS = ("F32", "BF16", "F16", "F64")  # as safetensors name them
_TAG = re.compile(r"<[^<>]*>")


class Features:
    """Features of captions in a file: `features` [n, T, F] with any T, `mask` [n, T], 1 at a caption's tokens, and the
    captions, a JSON list in the metadata `captions` or a line each in a text file of the same name.

    Args:
        file: safetensors.
        slots: most tokens of a caption.
        width: numbers a token, F.

    Raises:
        ModelError: it can't be read, does not fit the model, or not its captions.
    """

    def __init__(self, file: Path, slots: int, width: int) -> None:
        self.file, self.slots = file, slots
        if not file.is_file():
            found = "a folder" if file.is_dir() else "no such file"
            raise ModelError(f"{file}: {found}, expected a safetensors file with the features of captions; give its path.")
        try:
            with self._opened() as opened:
                shape, mask = (tuple(opened.get_slice(name).get_shape()) for name in ("features", "mask"))
                kind = str(opened.get_slice("features").get_dtype())
                captions = json.loads((opened.metadata() or {}).get("captions", "null"))
            if captions is None:
                captions = [line.text.strip() for line in read_lines(file.with_suffix(".txt"), "list of captions")]
        except Exception as error:  # a damaged file may fail in any way
            raise ModelError(
                f"{file}: cannot be read ({said(error)}), expected features, mask and captions in safetensors: write it again."
            ) from error
        if len(shape) != 3 or shape[2] != width or mask != shape[:2]:
            raise ModelError(
                f"{file}: features {list(shape)} with a mask {list(mask)}, expected [captions, tokens, {width}] and "
                "[captions, tokens]: compute them with the encoder that the model was trained with."
            )
        if kind not in _FLOATS:
            raise ModelError(f"{file}: features are of {kind}, expected {', '.join(_FLOATS)}: write the encoder's own numbers.")
        if not isinstance(captions, list) or len(captions) != shape[0] or not captions:
            count = len(captions) if isinstance(captions, list) else "no list of"
            raise ModelError(f"{file}: has features of {shape[0]} captions, but {count} captions: write both in one go.")
        self._places: dict[str, int] = {}
        for place, caption in enumerate(captions):
            if not isinstance(caption, str) or not caption.strip():
                raise ModelError(f"{file}: caption {place + 1} is {shown(caption)}, expected a text: write the captions again.")
            if caption in self._places:
                raise ModelError(
                    f"{file}: caption {place + 1}, {shown(caption)}, stands there twice, first as caption "
                    f"{self._places[caption] + 1}: keep one."
                )
            self._places[caption] = place

    def __len__(self) -> int:
        """Different captions."""
        return len(self._places)

    def captions(self) -> list[str]:
        """All, in the order of the file."""
        return list(self._places)

    def of(self, prompt: str) -> torch.Tensor | None:
        """[n, F] of the caption's tokens; None where it is not in the file.

        Raises:
            DataError: no token, more than the model takes, or numbers that are none.
        """
        place = self._places.get(prompt)
        if place is None:
            return None
        with self._opened() as opened:
            mask = opened.get_slice("mask")[place]
            real = mask.bool()
            found: torch.Tensor = opened.get_slice("features")[place][real]
        if not bool((mask == real).all()) or int((real.int().diff(prepend=real.new_zeros(1).int()) > 0).sum()) > 1:
            raise DataError(
                f"{self.file}: the mask of caption {place + 1}, {shown(prompt)}, has a gap or other numbers than 0 and 1; "
                "expected 1 at its tokens, one beside the other, and 0 at the padding: write it again."
            )
        if not 0 < len(found) <= self.slots or not bool(found.isfinite().all()):
            raise DataError(
                f"{self.file}: caption {place + 1}, {shown(prompt)}, has {len(found)} tokens, expected 1 to {self.slots} of "
                "finite numbers: compute it again."
            )
        return found

    def _opened(self) -> Any:
        return safe_open(self.file, framework="pt")


class Encoder:
    """flan-t5-xl's encoder, in bfloat16 as LlamaGen runs it.

    Args:
        folder: as transformers saves it, with its tokenizer.
        slots: most tokens of a caption.
        width: numbers a token, F.
        device: where it runs.

    Raises:
        ModelError: it can't be loaded, or is another encoder.
    """

    def __init__(self, folder: Path, slots: int, width: int, device: torch.device) -> None:
        self.slots = slots
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            network: Any = T5EncoderModel.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
        except Exception as error:  # what stands in a folder may fail in any way
            raise ModelError(f"{folder}: cannot be loaded as a T5 encoder ({said(error)}).") from error
        if network.config.d_model != width:
            raise ModelError(
                f"{folder}: gives {network.config.d_model} features a token, the model takes {width}: put the encoder "
                "there that it was trained with."
            )
        check_spaces(self.tokenizer, folder)
        self.network = network.to(device).eval()

    @torch.inference_mode()
    def of(self, prompt: str) -> tuple[torch.Tensor, list[str]]:
        """[n, F] of the caption's tokens, and these; each caption alone, so that it does not depend on others.

        Raises:
            DataError: more tokens than the model takes.
        """
        ids = self.tokenizer(cleaned(prompt))["input_ids"]
        if len(ids) > self.slots:
            raise DataError(f"prompt {shown(prompt)}: {len(ids)} tokens, at most {self.slots} are read: shorten it.")
        found = self.network(input_ids=torch.tensor([ids], device=self.network.device)).last_hidden_state[0]
        return found.clone(), list(self.tokenizer.convert_ids_to_tokens(ids))


def cleaned(caption: str) -> str:
    """A caption as LlamaGen's script writes it, as far as ordinary captions go: small letters, single spaces, no HTML."""
    return " ".join(_TAG.sub(" ", html.unescape(caption)).split()).lower()


def write_features(path: Path, prompts: Sequence[str], each: Sequence[torch.Tensor]) -> Path:
    """Write what `Features` reads, whole or not at all.

    Args:
        path: the file.
        prompts: captions.
        each: of every caption, [n, F].
    """
    counts = torch.tensor([len(one) for one in each])
    features = pad_sequence([one.cpu() for one in each], batch_first=True).contiguous()
    mask = (torch.arange(features.shape[1]) < counts[:, None]).to(torch.uint8)
    told = {"captions": json.dumps(list(prompts))}
    return write_whole(path, lambda target: save_file({"features": features, "mask": mask}, target, told))
