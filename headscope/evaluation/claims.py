"""What an evaluation's folder is about, so that nothing in it is taken for something else: evaluation.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headscope.errors import DataError
from headscope.facts import OBJECT, check, optional
from headscope.models import ImageModel
from headscope.policy import Policy
from headscope.prompt_files import Asked
from headscope.storage import read_json, write_json


def claim(out: Path, model: ImageModel, asked: Sequence[Asked], seeds: int, guidance: float | None, layout: str | None) -> None:
    """Note what the folder `out` is about.

    Args:
        out: the evaluation's folder.
        model: what generates its images.
        asked: the prompts.
        seeds: images a prompt.
        guidance: scale of classifier-free guidance, by default the model's own.
        layout: see `EvaluationConfig`.

    Raises:
        DataError: it is about something else.
    """
    text = json.dumps([[one.prompt, one.name] for one in asked])
    facts = {
        "model": model.shape.name,
        "weights": model.shape.weights,
        "prompts": hashlib.sha256(text.encode()).hexdigest()[:16],
        "count": len(asked),
        "seeds": seeds,
        "guidance": model.guidance if guidance is None else guidance,
        "layout": layout,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    file = out / "evaluation.json"
    if file.is_file():
        found = _facts(file)
        if found.get("prompts") != facts["prompts"]:
            raise DataError(f"{out}: holds an evaluation of other prompts, or of fewer or more of them; choose another folder.")
        if found.get("guidance") is None:  # the model's own, as earlier versions wrote it
            found["guidance"] = model.guidance
        for name, value in facts.items():
            if found.get(name) != value:
                before = found.get(name)
                raise DataError(f"{out}: holds an evaluation with {name} {before}, now it is {value}; choose another folder.")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and holds no evaluation; choose another folder.")
    write_json(file, facts)


def claim_names(out: Path, policies: Mapping[str, Policy]) -> None:
    """Note which policy each name stands for, so that its images are not taken for those of another one of that name.

    Raises:
        DataError: one of the names stands for another policy there.
    """
    file = out / "evaluation.json"
    facts = _facts(file)
    before = check(facts, {"policies": optional(OBJECT)}, str(file), advice="choose another folder").get("policies", {})
    given = {name: policy.fingerprint() for name, policy in policies.items()}
    if other := [name for name, digest in given.items() if before.get(name, digest) != digest]:
        raise DataError(
            f"{out}: holds images of another policy called {other[0]}; give the file another name, or choose another folder."
        )
    if not before.keys() >= given.keys():
        write_json(file, {**facts, "policies": {**before, **given}})


def _facts(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except DataError as error:
        raise DataError(f"{error} What {file.parent} is an evaluation of is not known; choose another folder.") from None
    if not isinstance(found, dict):
        raise DataError(f"{file}: holds no facts of an evaluation; choose another folder.")
    return found


def note_decoders(out: Path, decoders: Mapping[str, str]) -> None:
    """Add to the facts of the folder `out` which decoder generates each variant's images."""
    file = out / "evaluation.json"
    facts = _facts(file)
    if facts.get("decoders") != decoders:
        write_json(file, {**facts, "decoders": dict(decoders)})
