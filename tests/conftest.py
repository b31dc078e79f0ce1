"""Shared by all tests: one thread, no network, the bundled model, and a tiny random Janus."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
if not os.path.exists("/dev/nvidiactl"):
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which torch may do

from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest
import torch

from headscope.models import ImageModel, Samples, load_model
from headscope.runtime import generate
from tests.tiny import tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def stickers() -> ImageModel:
    """The bundled model."""
    return load_model("stickers", device="cpu")


@pytest.fixture(scope="session")
def recorded(stickers: ImageModel) -> Samples:
    """Two images of the bundled model, generated with the full cache."""
    return generate(stickers, ["red apple, noto style", "dog face, twemoji style, blue background"], 0)


@pytest.fixture(scope="session")
def tiny() -> ImageModel:
    """A random Janus: 2 layers, 4 query and 2 KV heads, 4 x 4 tokens."""
    return tiny_model()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a folder."""
    folder = tmp_path_factory.mktemp("tiny-janus")
    model = tiny_model()
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def plain_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not written as SVG, which takes most of the time of a page."""
    monkeypatch.setattr(
        "headscope.reporting.page.svg", lambda figure: f"<svg aria-label={quoteattr(figure.get_label())}></svg>"
    )


# The files that take longest, the longest first, so that two processes end together: else one waits for the other.
LONGEST = (
    "test_search.py",
    "test_storages.py",
    "test_flat.py",
    "test_run.py",
    "test_gpu.py",
    "test_evaluate.py",
    "test_core_only.py",
    "test_graph.py",
    "test_report.py",
    "test_full.py",
    "test_bench.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with LONGEST."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))
