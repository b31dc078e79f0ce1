"""The tokenizer of a Janus folder in DeepSeek's format.

Its settings name `LlamaTokenizerFast`, which since transformers 5 reads the file's bytes as if they were SentencePiece's and
loses every space. So the file is read as it stands, and what the class would add (the first token) is added here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from headscope.errors import ModelError
from headscope.facts import said, shown
from headscope.models.loading import read_object
from headscope.models.tokens import check_spaces

# DeepSeek's templates by the name that processor_config.json has for them (`sft_format`), for one user turn.
_PART = "{% for part in message['content'] %}{{ part['text'] | trim }}{% endfor %}"
TEMPLATES = {
    "deepseek": "{% for message in messages %}{{ '<|User|>: ' }}" + _PART + "{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>:' }}{% endif %}",
    "plain": "{% for message in messages %}" + _PART + "{% endfor %}",
}
# Their tokens' names, where no file of the folder says otherwise.
_BAR, _SPACE = "\uff5c", "\u2581"  # wide relatives of | and _
_NAMES = {
    "bos_token": f"<{_BAR}begin{_SPACE}of{_SPACE}sentence{_BAR}>",
    "eos_token": f"<{_BAR}end{_SPACE}of{_SPACE}sentence{_BAR}>",
    "pad_tag": f"<{_BAR}{_SPACE}pad{_SPACE}{_BAR}>",
    "image_start_tag": "<begin_of_image>",
}
_FILES = ("special_tokens_map.json", "tokenizer_config.json", "processor_config.json")
_UNLIMITED = int(1e30)  # as transformers writes it


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer with its template and the tokens that generating needs.

    Raises:
        ModelError: there is none, a token is unknown to it, its template is not DeepSeek's, or it loses spaces.
    """
    said_there = _settings(folder)
    style = said_there.get("sft_format", "deepseek")
    if not isinstance(style, str) or style not in TEMPLATES:
        raise ModelError(
            f"{folder / 'processor_config.json'}: sft_format is {shown(style)}, expected {' or '.join(TEMPLATES)}: prompts "
            "would not be written as in training."
        )
    file = folder / "tokenizer.json"
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises `Exception` itself
        raise ModelError(f"{file}: cannot be read ({said(error)}): copy the checkpoint's own tokenizer.json.") from error
    names = {role: said_there[role] for role in _NAMES}
    for role, token in names.items():
        if not isinstance(token, str) or backend.token_to_id(token) is None:
            raise ModelError(f"{file}: has no token {shown(token)}, the {role} here: copy the checkpoint's own tokenizer.json.")
    backend.no_padding()
    backend.no_truncation()
    if said_there.get("add_bos_token", True):
        _begin_with(backend, names["bos_token"])
    limit = said_there.get("model_max_length", _UNLIMITED)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=names["bos_token"],
        eos_token=names["eos_token"],
        pad_token=names["pad_tag"],
        extra_special_tokens={"boi_token": names["image_start_tag"]},
        padding_side="left",
        model_max_length=int(limit) if isinstance(limit, (int, float)) and limit > 0 else _UNLIMITED,
        chat_template=TEMPLATES[style],
    )
    check_spaces(tokenizer, folder)
    return tokenizer


def _settings(folder: Path) -> dict[str, Any]:
    """What the small files say, the later over the earlier; a token's record becomes its text."""
    found: dict[str, Any] = dict(_NAMES)
    for name in _FILES:
        if (folder / name).is_file():
            found |= {key: value for key, value in read_object(folder / name).items() if value is not None}
    return {key: value["content"] if isinstance(value, dict) and "content" in value else value for key, value in found.items()}


def _begin_with(backend: Tokenizer, bos: str) -> None:
    """Let every text begin with the token `bos`, which in DeepSeek's file only the settings ask for."""
    begin = backend.token_to_id(bos)
    if backend.encode("a").ids[:1] != [begin]:
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, begin)])
