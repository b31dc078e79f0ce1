"""Checkpoints: weights and state of the optimiser in one safetensors file, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from headscope.recipe.muon import MuonAdam
from headscope.storage import write_whole


def save(
    module: nn.Module,
    optimiser: MuonAdam,
    path: Path,
    facts: Mapping[str, str],
    more: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint.

    Args:
        module: its weights keep their names.
        optimiser: its state is named "optimiser." and its name.
        path: of the file.
        facts: kept beside the tensors; "step" must be among them.
        more: tensors, named "more." and their name.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    state |= {f"optimiser.{name}": value.cpu().contiguous() for name, value in optimiser.state.items()}
    state |= {f"more.{name}": value.cpu().contiguous() for name, value in (more or {}).items()}
    write_whole(path, lambda target: save_file(state, target, dict(facts)))


def resume(
    module: nn.Module, optimiser: MuonAdam, path: Path, more: Mapping[str, torch.Tensor] | None = None
) -> dict[str, str]:
    """Load a checkpoint in place, wherever module and optimiser are; its facts, none if there is no checkpoint."""
    if not path.exists():
        return {}
    with safe_open(str(path), "pt") as file:
        facts, state = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    module.load_state_dict({name: value for name, value in state.items() if not name.startswith(("optimiser.", "more."))})
    for prefix, buffers in (("optimiser.", optimiser.state), ("more.", more or {})):
        for name, buffer in buffers.items():
            buffer.copy_(state[prefix + name])
    optimiser.step_count = int(facts["step"])
    return facts
