"""What the report on `stickers-classes` says of its images is what its labels say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from headscope.errors import DataError
from headscope.models import load_model
from tests.reports.scripts import REPORTS, functions

FOLDER = REPORTS / "stickers" / "classes"


def test_the_table_is_that_of_the_labels_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.read_csv(FOLDER / "images.csv")
    things = functions(monkeypatch, "stickers/classes.py").labels(FOLDER / "labels.jsonl", 96)
    model = load_model("stickers-classes", "cpu")
    numbers = model.tokenize(list(table["class"])).ids.flatten().tolist()
    assert numbers == [number for number in range(48) for _ in range(2)]
    assert list(table["annotator"]) == [
        "yes" if name in found else "no" for name, found in zip(table["class"], things, strict=True)
    ]
    assert list(table["seed"]) == list(range(1, 97))
    assert Image.open(FOLDER / "sheet.png").mode == "P"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"image": 0, "things": {"owl": 1}}\n', "has 1 labels, expected one for each of 2 images"),
        ('{"image": 1, "things": {}}\n{"image": 0, "things": {}}\n', "from 0 on, in order"),
        ('{"image": 0}\n', "not lines of"),
        ("[\n", "not lines of"),
    ],
)
def test_other_labels_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "labels.jsonl").write_text(text)
    with pytest.raises(DataError, match=says):
        functions(monkeypatch, "stickers/classes.py").labels(tmp_path / "labels.jsonl", 2)


def test_images_are_enlarged_for_the_detector_and_sheets_have_few_colours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = functions(monkeypatch, "stickers/classes.py")
    pixels = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    pixels[:, 32:] = 200
    large = script.enlarged(pixels)
    assert large.shape == (1, 96, 96, 3)
    assert large[0, 40, 0].tolist() == [0, 0, 0]
    assert large[0, 60, 0].tolist() == [200, 200, 200]
    noise = torch.randint(256, (64, 64, 3), generator=torch.Generator().manual_seed(0)).byte()
    Image.fromarray(noise.numpy()).save(tmp_path / "sheet.png")
    script.few_colours(tmp_path / "sheet.png")
    assert len(Image.open(tmp_path / "sheet.png").convert("RGB").getcolors(4096)) <= 256
