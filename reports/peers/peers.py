"""kvpress' presses and headscope's policies at the same number of tokens, on images that no search saw.

    python reports/peers/peers.py RUN --keep 20% --images 16 -o reports/peers/peers.csv

needs the environment of kvpress (`make peers` sets it up). Images are those of the most common length of prompts, for kvpress
knows no padding; a head has at most the same share of the tokens of a whole sequence at any step, on both sides (16 bits). The
searched policy is that of `search.py` in the run (bench/keep-20/searched16-0.safetensors), made for the longest prompt.

A row a press and interval (tokens between two choices) or a policy: method, interval, frees (whether memory is freed),
replay_kl (nats a token) with its 95 % interval (kl_low, kl_high), images, and what it said where it stopped (said).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stickers"))
from bench_setup import Keep, Out, Run, Setup, shares, show, start, write_table

from headscope.intervals import mean_interval
from headscope.policy import Policy, load_policy
from headscope.tuning import Replay

HERE = Path(__file__).resolve()
PYTHON = HERE.parents[2] / ".venv-kvpress" / "bin" / "python"
FACTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters")  # fmt: skip


def main(
    run: Run,
    out: Out = Path("peers.csv"),
    keep: Keep = "20%",
    images: Annotated[int, typer.Option(min=1, help="Unseen images.")] = 16,
) -> None:
    """Measure both sides."""
    setup, (share,) = Setup.open(run, None), shares(keep)
    lengths = setup.model.tokenize(list(setup.unseen.prompts)).mask.sum(1)
    same = torch.nonzero(lengths == lengths.mode().values).flatten().tolist()[:images]
    replay = Replay(setup.model, setup.unseen.select(same), batch_size=len(same), by_stream=False)
    rows = theirs(setup, replay, share)
    for name, policy in ours(setup, replay, share).items():
        rows.append(row(name, None, True, replay.measure(policy).kl_by_image.numpy()))
    table = pd.DataFrame(rows).sort_values("replay_kl")
    write_table(table, out)
    show(table)


def ours(setup: Setup, replay: Replay, share: float) -> dict[str, Policy]:
    """Policies by name."""
    shape = setup.model.shape
    room = int(share * (replay.prefix + shape.geometry.tokens)) - replay.prefix - 1  # beside the prompt and the query
    same = {"prefix": replay.prefix, "stride": 1}
    found = {
        "headscope streaming": Policy.uniform(shape, window=room, **same),
        "headscope h2o": Policy.uniform(shape, window=room // 2, heavy=room - room // 2, decay=1.0, **same),
    }
    path = setup.folder(share) / "searched16-0.safetensors"
    return found | ({"headscope searched, 16 bits": load_policy(path, shape)} if path.exists() else {})


def theirs(setup: Setup, replay: Replay, share: float) -> list[dict[str, Any]]:
    """A row a press and interval, by presses.py."""
    decoder = setup.model.decoder
    config = decoder.config.to_dict()
    tensors = {f"weights.{name}": tensor.contiguous().clone() for name, tensor in decoder.state_dict().items()}
    (batch,) = replay.batches
    tensors |= {"embeds": torch.cat([batch.prefix, batch.tokens], 1).contiguous(), "prefix": torch.tensor(replay.prefix)}
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / name for name in ("decoder.json", "tensors.safetensors", "out.safetensors")]
        files[0].write_text(json.dumps({name: config[name] for name in FACTS}), encoding="utf-8")
        save_file(tensors, files[1])
        subprocess.run([PYTHON, HERE.with_name("presses.py"), *files[:2], str(share), files[2]], check=True)
        hidden = load_file(files[2])
        with safe_open(files[2], "pt") as file:
            said = file.metadata() or {}
    rows = [row(name, interval, "hides" not in name, None, text) for (name, interval), text in labels(said).items()]
    for label, states in sorted(hidden.items()):
        with torch.inference_mode():
            divergence = replay.compare(states, slice(0, len(replay)))[0]
        assert divergence is not None
        name, interval = label.rsplit(" ", 1)
        rows.append(row(f"kvpress {name}", int(interval), "hides" not in name, divergence.double().mean(1).numpy()))
    return rows


def labels(said: dict[str, str]) -> dict[tuple[str, int], str]:
    """What stopped, by press and interval."""
    parts = {label: label.rsplit(" ", 1) for label in said}
    return {(f"kvpress {name}", int(interval)): said[label] for label, (name, interval) in parts.items()}


def row(name: str, interval: int | None, frees: bool, losses: np.ndarray | None, said: str = "") -> dict[str, Any]:
    """Of the table."""
    low, high = (np.nan, np.nan) if losses is None else mean_interval(losses)
    found = {"method": name, "interval": interval, "frees": frees, "replay_kl": np.nan if losses is None else losses.mean()}
    return found | {"kl_low": low, "kl_high": high, "images": 0 if losses is None else len(losses), "said": said}


if __name__ == "__main__":
    start(main)
