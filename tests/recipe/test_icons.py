"""Icon packages become a table of images, or one sentence that says what to fetch."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from headscope.errors import DataError
from headscope.recipe.icons import SETS, IconSet, Package, build_images, choose_drawings, read_packages, svg

LICENCES = {"noto": "Apache-2.0", "twemoji": "CC-BY-4.0", "emojione": "CC-BY-4.0", "fxemoji": "Apache-2.0"}


def square(colour: str, size: int = 32) -> str:
    return f'<path fill="{colour}" d="M0 0h{size}v{size}H0z"/>'


def icons_of(icon_set: IconSet) -> dict[str, dict[str, object]]:
    """Four sets draw a red apple (one hides it), five a black bird (one in one word), three a lime, all a hand."""
    drawn: dict[str, dict[str, object]] = {"waving-hand": {"body": square("#ffcc00")}}
    if icon_set.prefix in ("noto", "twemoji", "emojione", "fluent-emoji"):
        drawn["red-apple"] = {"body": square("#ff0000"), "hidden": icon_set.prefix == "noto"}
    if icon_set.prefix != "fxemoji":
        drawn["blackbird" if icon_set.prefix == "fluent-emoji" else "black-bird"] = {"body": square("#000000")}
    if icon_set.prefix in ("noto", "twemoji", "emojione"):
        drawn["lime"] = {"body": square("#00ff00")}
    return drawn


def write_unpacked(folder: Path, icon_set: IconSet) -> Path:
    place = folder / icon_set.prefix
    place.mkdir(parents=True)
    licence = LICENCES.get(icon_set.prefix, "MIT")
    contents = {
        "package.json": {"name": icon_set.package, "version": icon_set.version},
        "info.json": {"license": {"spdx": licence}},
        "icons.json": {"prefix": icon_set.prefix, "icons": icons_of(icon_set), "width": 32, "height": 32},
    }
    for name, content in contents.items():
        (place / name).write_text(json.dumps(content), encoding="utf-8")
    return place


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    for icon_set in SETS:
        write_unpacked(tmp_path / "icons", icon_set)
    return tmp_path / "icons"


@pytest.fixture
def packed(unpacked: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "packed"
    folder.mkdir()
    for icon_set in SETS:
        with tarfile.open(folder / icon_set.archive, "w:gz") as archive:
            archive.add(unpacked / icon_set.prefix, "package")
    return folder


def concepts(table: pd.DataFrame, concept: str) -> list[str]:
    return list(table[table["concept"] == concept]["style"])


def test_concepts_in_four_sets_become_rows_and_others_do_not(unpacked: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(build_images(unpacked, tmp_path / "out.parquet", size=8))
    assert list(table.columns) == ["concept", "style", "caption", "licence", "source", "webp"]
    assert concepts(table, "black bird") == ["emojione", "fluent", "flat", "noto", "twemoji"]
    assert concepts(table, "red apple") == ["emojione", "fluent", "noto", "twemoji"]
    assert len(table) == 9


def test_a_row_names_caption_licence_and_source(unpacked: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(build_images(unpacked, tmp_path / "out.parquet", size=8))
    row = table[(table["concept"] == "black bird") & (table["style"] == "fluent")].iloc[0]
    assert row["caption"] == "black bird, fluent style"
    assert row["licence"] == "MIT"
    assert row["source"] == "@iconify-json/fluent-emoji:blackbird"


def test_images_are_lossless_squares_of_the_size_asked_for(unpacked: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(build_images(unpacked, tmp_path / "out.parquet", size=8))
    blob = table[table["concept"] == "red apple"]["webp"].iloc[0]
    assert blob[:4] == b"RIFF"
    assert blob[12:16] in (b"VP8L", b"VP8X")  # the lossless kind
    assert (np.asarray(Image.open(io.BytesIO(blob)).convert("RGBA")) == (255, 0, 0, 255)).all()


def test_an_icon_that_is_no_square_stands_in_the_middle(unpacked: Path, tmp_path: Path) -> None:
    path = unpacked / "noto" / "icons.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["icons"]["red-apple"] = {"body": square("#ff0000"), "height": 16}
    path.write_text(json.dumps(content), encoding="utf-8")
    table = pd.read_parquet(build_images(unpacked, tmp_path / "out.parquet", size=8))
    blob = table[table["source"] == "@iconify-json/noto:red-apple"]["webp"].iloc[0]
    alpha = np.asarray(Image.open(io.BytesIO(blob)).convert("RGBA"))[..., 3]
    assert (alpha[[0, 7]] == 0).all()
    assert (alpha[[3, 4]] == 255).all()


def test_packed_and_unpacked_packages_give_the_same_table(unpacked: Path, packed: Path, tmp_path: Path) -> None:
    one = pd.read_parquet(build_images(unpacked, tmp_path / "one.parquet", size=8))
    other = pd.read_parquet(build_images(packed, tmp_path / "other.parquet", size=8))
    pd.testing.assert_frame_equal(one, other)


@pytest.mark.parametrize("name", ["waving-hand", "mango", "man-cook", "one-oclock", "headstone", "stop-sign", "flag-in-hole"])
def test_hands_people_clocks_and_signs_are_left_out(name: str) -> None:
    packages = [Package(icon_set, {"icons": {name: {"body": ""}}}, "MIT") for icon_set in SETS]
    assert choose_drawings(packages) == []


@pytest.mark.parametrize("name", ["old-man", "snowman", "black-flag", "kissing-cat", "red-apple"])
def test_names_that_only_look_like_those_stay(name: str) -> None:
    packages = [Package(icon_set, {"icons": {name: {"body": ""}}}, "MIT") for icon_set in SETS]
    assert [drawing.concept for drawing in choose_drawings(packages)] == [name.replace("-", " ")] * 6


def test_an_icon_takes_its_size_from_itself_then_from_its_set() -> None:
    icons = {
        "width": 36,
        "height": 36,
        "icons": {"a": {"body": "<g/>", "height": 25.5, "left": -2}, "b": {"body": "<g/>"}},
    }
    package = Package(SETS[0], icons, "MIT")
    assert 'viewBox="-2 0 36 25.5"' in svg(package, "a")
    assert 'viewBox="0 0 36 36"' in svg(package, "b")


def test_missing_packages_are_named_with_the_command_that_fetches_them(unpacked: Path) -> None:
    (unpacked / "noto" / "package.json").unlink()
    with pytest.raises(DataError, match=r"noto@1\.2\.9 not found in it; fetch with `npm pack --pack-destination") as error:
        read_packages(unpacked)
    assert "twemoji" not in str(error.value)


def test_another_version_of_a_package_does_not_count(unpacked: Path) -> None:
    other = {"name": "@iconify-json/noto", "version": "1.2.8"}
    (unpacked / "noto" / "package.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(DataError, match=r"noto@1\.2\.9 not found"):
        read_packages(unpacked)


def test_a_missing_folder_says_which_six_packages_belong_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder") as error:
        read_packages(tmp_path / "icons")
    assert all(f"{icon_set.package}@{icon_set.version}" in str(error.value) for icon_set in SETS)


def test_a_cut_archive_is_named(packed: Path) -> None:
    path = packed / SETS[0].archive
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"iconify-json-emojione-1\.2\.3\.tgz: damaged"):
        read_packages(packed)


def test_an_icon_that_cannot_be_drawn_is_named_and_nothing_is_written(unpacked: Path, tmp_path: Path) -> None:
    path = unpacked / "noto" / "icons.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["icons"]["red-apple"] = {"body": "<path"}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match="@iconify-json/noto:red-apple: cannot be drawn"):
        build_images(unpacked, tmp_path / "out.parquet", size=8)
    assert not list(tmp_path.glob("*.parquet"))


def test_without_the_renderer_the_extra_that_brings_it_is_named(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(DataError, match=r"headscope\[recipe\]"):
        build_images(unpacked, tmp_path / "out.parquet", size=8)


def test_the_command_writes_the_file_and_prints_where(packed: Path, tmp_path: Path) -> None:
    from headscope.recipe.__main__ import app  # here, because it brings in the whole package

    out = tmp_path / "images.parquet"
    result = CliRunner().invoke(app, ["images", "--packages", str(packed), "--out", str(out), "--size", "8"])
    assert result.exit_code == 0, result.output
    assert str(out) in result.output.replace("\n", "")
    assert len(pd.read_parquet(out)) == 9
