"""What may be wrong with a LlamaGen's folder: one sentence, and nothing is written."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headscope.errors import ModelError
from headscope.models import codebook, load_model
from headscope.models.codebook import is_foreign, likeness
from headscope.models.llamagen_files import sizes_of
from tests.cli.command import headscope
from tests.janus_original import write_weights
from tests.llamagen import Tensors, Tiny, transformer, vq_model, vq_tensors, write_llamagen
from tests.models.test_original_folders import Harmful

SIZE = Tiny()
FILE, VQ, SIDE = "classes.pt", "vq_ds16_c2i.pt", "llamagen.json"


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return transformer(SIZE)


@pytest.fixture(scope="module")
def whole(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llamagen(tmp_path_factory.mktemp("whole") / "Toy", SIZE, tensors, FILE)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "Toy")


def say(folder: Path, **settings: Any) -> None:
    """Other settings in place of those of the side file."""
    (folder / SIDE).write_text(json.dumps(settings))


def change(folder: Path, give: Callable[[Tensors], Tensors]) -> None:
    """Other tensors in the transformer's file."""
    torch.save(give(transformer(SIZE)), folder / FILE)


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


TABLE, OUTPUT = "cls_embedding.embedding_table.weight", "output.weight"
LORA = {f"layers.0.lora_{letter}": torch.zeros(2) for letter in "BADC"}
DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / VQ).unlink(), "expected one VQ model, such as vq_ds16_c2i.pt, found none"),
    (lambda f: shutil.copy(f / VQ, f / "other.pt"), "expected one VQ model, .* found other.pt, vq_ds16_c2i.pt"),
    (lambda f: torch.save(vq_tensors(vq_model(4)) | {"quantize.embedding.weight": torch.zeros(9, 8)}, f / VQ), "has 9 codes"),
    (lambda f: (f / VQ).write_bytes((f / VQ).read_bytes()[:999]), f"{VQ}: cannot be read"),
    (lambda f: (f / FILE).unlink(), "has no transformer of LlamaGen's"),
    (lambda f: shutil.copy(f / FILE, f / "c2i_L_256.pt"), r"several transformers, c2i_L_256\.pt, classes\.pt: give each"),
    (lambda f: change(f, lambda t: t | LORA), r"has \S*lora_A, \S*lora_B, \S*lora_C \(4 tensors in all\), for which the model"),
    (lambda f: change(f, lambda t: t | {"norm.weight": torch.ones(32).int()}), r"norm\.weight is of int32, expected floating"),
    (lambda f: (f / "other.pt").touch(), r"other\.pt: cannot be read \(it is no archive such as torch\.save writes\)"),
    (lambda f: say(f, heads=4, grid=4, temperature=0), r"llamagen\.json: temperature is 0, expected a number above 0, at most"),
    (lambda f: change(f, without("norm.weight", "layers.1.attention.wo.weight")), r"lacks layers\.1\.attention\.wo\.weight, n"),
    (lambda f: change(f, without("layers.1.attention.wqkv.weight")), r"lacks layers\.1\.attention\.wqkv\.weight\[k\]"),
    (lambda f: change(f, without(OUTPUT)), r"lacks the matrix output\.weight, which a size is told by"),
    (lambda f: change(f, without(TABLE)), "has neither of cls_embedding"),
    (lambda f: change(f, lambda t: t | {"norm.weight": torch.ones(31)}), r"norm\.weight has the shape \[31\], by the"),
    (lambda f: (f / SIDE).unlink(), r"a width of 32 is none of LlamaGen's \(768, .* such as \{\"heads\": 8, \"grid\": 16\}"),
    (lambda f: say(f, heads=4), "neither the name classes .256, 384 or 512. nor llamagen.json says how large images are"),
    (lambda f: say(f, heads=5, grid=4), "5 heads of a width of 32: expected a multiple of 4 numbers a head"),
    (lambda f: say(f, heads=4, grid="4"), r'llamagen\.json: grid is "4", expected a whole number'),
    (lambda f: say(f, heads=4, gird=4), r'llamagen\.json: "gird": no such setting; known are heads, grid'),
    (lambda f: (f / SIDE).write_text("{"), r"llamagen\.json: cannot be read as JSON"),
    (
        lambda f: torch.save(transformer(SIZE), f / FILE, _use_new_zipfile_serialization=False),
        rf"{FILE}: is in the format of torch before 1\.6, .*torch\.load\('{FILE}', weights_only=True\), '{FILE}'\)",
    ),
    (lambda f: (f / "classes.txt").write_text("owl\ncat"), "names 2 classes, the transformer knows 10"),
    (lambda f: (f / "config.json").write_text("{}"), r"LlamaGen's, and config\.json, which is another family's: give each"),
    (lambda f: (f / "headscope.toml").write_text(""), r"LlamaGen's, and headscope\.toml, which is another family's"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), DAMAGE, ids=[str(number) for number in range(len(DAMAGE))])
def test_a_damaged_folder_is_one_sentence(folder: Path, damage: Callable[[Path], object], says: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=says) as told:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(told.value)


PUBLISHED = [
    ("c2i_B_256", 768, 12, 64, 16),
    ("c2i_B_384", 768, 12, 64, 24),
    ("c2i_L_384", 1024, 16, 64, 24),
    ("c2i_XL_384", 1280, 20, 64, 24),
    ("c2i_XXL_384", 1536, 24, 64, 24),
    ("c2i_3B_384", 3200, 32, 100, 24),
    ("t2i_XL_stage1_256", 1280, 20, 64, 16),
    ("t2i_XL_stage2_512", 1280, 20, 64, 32),
]


def write_shapes(folder: Path, name: str, width: int) -> list[Path]:
    """A file of a published name and width, which holds shapes and no weights."""
    shapes = {"tok_embeddings.weight": (8, width), OUTPUT: (8, width), "layers.0.feed_forward.w1.weight": (8, width)}
    shapes |= {"layers.0.attention.wqkv.weight": (3 * width, width), "layers.0.attention_norm.weight": (width,)}
    shapes |= {"cls_embedding.uncond_embedding": (120, 2048)} if name.startswith("t2i") else {TABLE: (1001, width)}
    torch.save({name: torch.empty(shape, dtype=torch.int8) for name, shape in shapes.items()}, folder / f"{name}.pt")
    return [folder / f"{name}.pt"]


@pytest.mark.parametrize(("name", "width", "heads", "dim", "side"), PUBLISHED)
def test_a_published_model_is_known_by_its_width_and_name(
    tmp_path: Path, name: str, width: int, heads: int, dim: int, side: int
) -> None:
    found = sizes_of(tmp_path, write_shapes(tmp_path, name, width), {})
    assert (found.heads, found.kv_heads, found.head_dim, found.side) == (heads, heads, dim, side)
    asked = (found.kind, found.prefix, found.classes, found.features)
    assert asked == (("text", 120, 0, 2048) if name.startswith("t2i") else ("class", 1, 1000, 0))


@pytest.mark.parametrize(("name", "side"), [("c2i_B_256", 16), ("c2i_B_384", 24)])
def test_other_sizes_than_a_published_models_are_refused(tmp_path: Path, name: str, side: int) -> None:
    write_shapes(tmp_path, name, 768)
    with pytest.raises(ModelError, match=rf"{name} was trained on images of {side * 16} pixels .* asks for 32 x 32"):
        sizes_of(tmp_path, [tmp_path / f"{name}.pt"], {"grid": 32})
    other = shutil.copy(tmp_path / f"{name}.pt", tmp_path / "c2i_B_512.pt")
    with pytest.raises(
        ModelError, match=r"32 x 32 tokens, but LlamaGen's class-conditional .* of 256 .* and 384 .* give noise"
    ):
        sizes_of(tmp_path, [Path(other)], {})


def test_a_missing_part_is_named(folder: Path, tensors: Tensors) -> None:
    (folder / FILE).unlink()
    write_weights(folder, tensors, "safetensors", 2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"lacks model-00002-of-00002\.safetensors, which model\.safetensors\.index\.json names"
    ):
        load_model(str(folder), device="cpu")


def test_the_command_says_it_and_writes_nothing(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    ended = headscope(capsys, monkeypatch, "generate", folder, "12", "--out", tmp_path / "images")
    assert (ended.status, "class 12: Toy has classes 0 to 9" in ended.err) == (2, True)
    ended = headscope(capsys, monkeypatch, "generate", folder, "9" * 5000, "--out", tmp_path / "images")
    assert (ended.status, "class 99999" in ended.err, len(ended.err) < 200) == (2, True, True)
    (folder / VQ).unlink()
    ended = headscope(capsys, monkeypatch, "run", folder, "--out", tmp_path / "run")
    assert (ended.status, ended.err.count("error: ")) == (2, 1)
    assert not (tmp_path / "images").exists()
    assert not (tmp_path / "run").exists()


def test_a_file_that_runs_code_is_refused(folder: Path, tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "args": Harmful(tmp_path / "done")}, folder / FILE)
    with pytest.raises(ModelError, match=f"{FILE}: cannot be read"):
        load_model(str(folder), device="cpu")
    assert not (tmp_path / "done").exists()


def test_a_vq_model_of_the_other_kind_is_doubted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(str(folder), device="cpu")
    monkeypatch.setattr(codebook, "FEWEST", 2)
    with pytest.warns(UserWarning, match=f"{VQ}: has codes that are alike where the transformer knows no likeness"):
        load_model(str(folder), device="cpu")
    (folder / VQ).rename(folder / "vq_ds16_t2i.pt")
    with pytest.warns(UserWarning, match=r"vq_ds16_t2i\.pt: is by its name that of the other kind .* such as vq_ds16_c2i\.pt"):
        load_model(str(folder), device="cpu")


def test_a_trained_transformer_knows_which_codes_are_alike(stickers: Any) -> None:
    inner = stickers.network.model
    book, head = inner.vqmodel.quantize.embedding.weight.detach(), inner.generation_head.vision_head.weight.detach()
    assert likeness(book, head) > 0.5
    assert not is_foreign(book, [head])
    dealt = book[torch.randperm(len(book), generator=torch.Generator().manual_seed(0))]
    assert is_foreign(dealt, [head])
