"""Models of one's own go through every step: without a prefix, without prompts, of one row, one head, layers of tuples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, LlamaConfig, LlamaForCausalLM

from headscope.geometry import Geometry
from headscope.heads import Heads
from headscope.models import RasterModel, register_model, registry
from headscope.pipeline import run
from headscope.pipeline.prompts import numbered
from headscope.reporting.gallery import write_figures
from headscope.runtime import generate
from headscope.samples import Samples
from headscope.tracing import watch, watch_live
from headscope.tuning import LimitConfig, PromptConfig, RunConfig, SearchConfig
from tests.models.test_raster import CODES, FIRST, louder

SIZES = {"vocab_size": 20, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 32}


def llama(**sizes: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return louder(LlamaForCausalLM(LlamaConfig(**SIZES, **sizes)))  # type: ignore[return-value]


def chameleon() -> ChameleonForConditionalGeneration:
    """Whose layers return tuples."""
    torch.manual_seed(0)
    codes = {"base_channels": 32, "num_embeddings": 8, "embed_dim": 8, "channel_multiplier": [1], "num_res_blocks": 1}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = ChameleonConfig(**SIZES, **heads, vq_config=codes, vocabulary_map={"<image>": 4})
    return louder(ChameleonForConditionalGeneration(config))  # type: ignore[return-value]


NAMED = {"start": [0], "prompts": {"a": [16], "b": [17, 2]}, "unconditional": [1], "guidance": 2.0}
MODELS: dict[str, tuple[Any, Geometry, dict[str, Any]]] = {
    "one head of 256, no prefix": (
        lambda: llama(num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=256),
        Geometry(3, 5),
        {"start": []},
    ),
    "one row, one KV head of 8": (
        lambda: llama(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=8),
        Geometry(1, 16),
        {"start": [0]},
    ),
    "tuples, guidance, row ends": (chameleon, Geometry(4, 3, 1), {"row_end": 19, **NAMED}),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_form_goes_through_every_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, geometry, more = MODELS[name]
    monkeypatch.setattr(registry, "_registered", {})
    register_model("mine", lambda device, dtype: RasterModel(make(), "mine", geometry=geometry, codes=(FIRST, CODES), **more))
    config = RunConfig(
        model="mine",
        limit=LimitConfig(keep="60%"),
        prompts=PromptConfig(texts=tuple(more.get("prompts", ())) or ("x",) * 4, calibration=2, unseen=2),
        search=SearchConfig(trials=2, table_images=1),
    )
    run(config, tmp_path / "run", device="cpu")
    table = pd.read_csv(tmp_path / "run" / "methods.csv").set_index("method")
    assert table.loc["full", "replay_kl"] == pytest.approx(0, abs=1e-6)
    assert 0 < table.loc["searched", "cache_bytes"] < table.loc["full", "cache_bytes"]
    heads = Heads.load(tmp_path / "run" / "heads.safetensors").table
    assert heads[["semantic_score", "confidence"]].notna().all(axis=None)
    if "prompts" not in more:  # four equal prompts are four images
        samples = [Samples.load(tmp_path / "run" / file) for file in ("calibration.parquet", "unseen.parquet")]
        assert [one.prompts for one in samples] == [["x", "x (3)"], ["x (2)", "x (4)"]]
        assert len(torch.cat([one.tokens for one in samples]).unique(dim=0)) == 4
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    if len(heads) < 3:  # too few for a dendrogram
        drawn = [path.stem for path in write_figures(tmp_path / "run", statistics=["entropy"])]
        assert drawn[:4] == ["map-entropy", "footprints", "decay", "layers"]
        assert "dendrogram" not in drawn


def test_an_image_without_a_prefix_is_traced_live_as_in_one_pass() -> None:
    model = RasterModel(
        llama(num_hidden_layers=2, num_attention_heads=4), "mine", geometry=Geometry(3, 4), codes=(FIRST, CODES)
    )
    samples = generate(model, ["a", "b"], [0, 1])
    with watch_live(model.decoder, model.shape.geometry, streams=("conditional",), prefix=0) as live:
        generate(model, ["a", "b"], [0, 1])
    for number, layer in watch(model, samples).layers.items():
        torch.testing.assert_close(live.layers[number].whole.columns, layer.whole.columns)


def test_equal_names_are_told_apart() -> None:
    assert numbered(["x", "y", "x", "x (2)", "x"]) == ["x", "y", "x (2)", "x (2) (2)", "x (3)"]
