"""The annotator's labels, the images they are of, and the tables made of both."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from headscope.errors import DataError
from headscope.intervals import share_interval
from headscope.models.janus import JanusModel
from headscope.recipe import agreement
from headscope.recipe.agreement import Labelled, read_labelled
from headscope.recipe.image_model import load_image_model
from headscope.stickereval.detector import Detection
from headscope.stickereval.grader import judge
from headscope.stickereval.prompts import PROMPTS, GradingPrompt, Wanted
from tests.tiny import tiny_model

REPORTS = Path(__file__).parents[2] / "reports" / "stickers"
LABELS, IMAGES = REPORTS / "labels.jsonl", REPORTS / "labelled.safetensors"


@pytest.fixture(scope="module")
def labelled() -> Labelled:
    return read_labelled(LABELS, IMAGES)


@pytest.fixture(scope="module")
def model() -> JanusModel:
    return load_image_model("stickers-scenes")


def things(*names: str) -> list[Detection]:
    return [Detection(name, "noto", 0.9, 0.5, 0.5, 0.4) for name in names]


def test_the_file_names_what_generated_the_images_and_is_small(labelled: Labelled) -> None:
    assert {name: labelled.about[name] for name in ("model", "guidance", "temperature")} == {
        "model": "stickers-scenes",
        "guidance": "2.0",
        "temperature": "0.7",
    }
    assert IMAGES.stat().st_size < 300_000
    assert Counter(prompt.tag for prompt in labelled.prompts) == dict.fromkeys(agreement.GRADED, 50)


def test_the_images_come_out_of_the_bundled_vq_model(labelled: Labelled, model: JanusModel) -> None:
    few = Labelled(labelled.tokens[:2], labelled.prompts[:2], labelled.things[:2], labelled.places[:2], labelled.about)
    assert agreement.decode_labelled(few, model).shape == (2, 96, 96, 3)
    with pytest.raises(DataError, match="is not the one of the labelled images"):
        agreement.decode_labelled(few, tiny_model())


def test_the_annotator_says_where_things_of_several_classes_are(labelled: Labelled) -> None:
    for things, places in zip(labelled.things, labelled.places, strict=True):
        assert set(places) == (set(things) if len(things) > 1 else set())
        assert all(0 <= share <= 1 for place in places.values() for share in place)
    beside = GradingPrompt("position", (Wanted("lemon", 1), Wanted("dog", 1, relation="left of", other=0)), "")
    both = Counter({"lemon": 1, "dog": 1})
    assert judge(agreement.annotated_detections(both, {"lemon": (0.8, 0.5), "dog": (0.2, 0.5)}), beside) == []
    assert judge(agreement.annotated_detections(both, {"lemon": (0.2, 0.5), "dog": (0.8, 0.5)}), beside) != []
    assert judge(agreement.annotated_detections(both, {}), beside) != []  # in no relation


def test_the_annotator_is_judged_by_the_graders_rules() -> None:
    three = GradingPrompt("counting", (Wanted("lemon", 3),), "three lemons")
    one = GradingPrompt("single", (Wanted("lemon", 1),), "a lemon")
    four = Counter({"lemon": 4})
    assert judge(agreement.annotated_detections(four, {}), one) == []
    assert judge(agreement.annotated_detections(four, {}), three) == ["found 4 x lemon, expected 3"]
    few = Labelled(torch.zeros(3, 576), [three, one, GradingPrompt("style", (), "")], [four, four, four], [{}, {}, {}], {})
    judged = agreement.verdicts(few, [things("lemon", "lemon", "lemon"), things("lemon"), []])
    assert judged.to_numpy().tolist() == [[0, "counting", "no", "yes"], [1, "single", "yes", "yes"]]
    table = agreement.agreement(judged).set_index("tag")
    assert table["agreement"].to_dict() == {"single": 1.0, "counting": 0.0, "overall": 0.5}
    assert table.loc["overall", "annotator_no_grader_yes"] == table.loc["overall", "annotator_yes_grader_yes"] == 1


@pytest.mark.parametrize(
    ("seen", "found", "expected"),
    [
        (["lemon"] * 4, ["lemon"] * 3 + ["bell"], {("lemon", "lemon"): 3, ("lemon", "bell"): 1}),
        (["lemon", "lemon"], ["bell"], {("lemon", "bell"): 1, ("lemon", "nothing"): 1}),
        (["lemon", "dog"], ["bell"], {("lemon", "nothing"): 1, ("dog", "nothing"): 1, ("nothing", "bell"): 1}),
        ([], ["bell"], {("nothing", "bell"): 1}),
        ([], [], {}),
    ],
)
def test_confusion_counts_what_is_what(seen: list[str], found: list[str], expected: dict[tuple[str, str], int]) -> None:
    table = agreement.confusion([Counter(seen)], [things(*found)])
    assert {(row.annotator, row.grader): row.count for row in table.itertuples(index=False)} == expected


@pytest.mark.parametrize("folder", [REPORTS, REPORTS / "nearest"], ids=["strict", "nearest"])
def test_the_tables_fit_the_labels_and_each_other(folder: Path) -> None:
    labelled = read_labelled(folder / "labels.jsonl", folder / "labelled.safetensors")
    assert Counter(prompt.tag for prompt in labelled.prompts) == dict.fromkeys(agreement.GRADED, 50)
    table = pd.read_csv(folder / "agreement.csv").set_index("tag")
    assert list(table.index) == [*agreement.GRADED, "overall"]
    cells = list(agreement._CELLS.values())
    assert (table[cells].sum(axis=1) == table["images"]).all()
    assert (table.loc[list(agreement.GRADED), cells].sum() == table.loc["overall", cells]).all()
    judged = agreement.verdicts(labelled, [[]] * len(labelled.things))
    assert (
        table.loc["overall", ["annotator_yes_grader_yes", "annotator_yes_grader_no"]].sum()
        == (judged["annotator"] == "yes").sum()
    )
    for row in table.itertuples():
        equal = row.annotator_yes_grader_yes + row.annotator_no_grader_no
        assert row.agreement == pytest.approx(equal / row.images, abs=1e-4)
        assert (row.low, row.high) == pytest.approx(share_interval(equal, row.images), abs=1e-4)
    seen = pd.read_csv(folder / "confusion.csv").groupby("annotator")["count"].sum().drop(agreement.NOTHING)
    assert seen.to_dict() == dict(sum(labelled.things, Counter()))


def test_some_of_the_committed_verdicts_come_out_again(labelled: Labelled, model: JanusModel) -> None:
    rows = [number for number, prompt in enumerate(labelled.prompts) if prompt.tag == "single"]
    prompts, things, places = ([each[n] for n in rows] for each in (labelled.prompts, labelled.things, labelled.places))
    few = Labelled(labelled.tokens[rows], prompts, things, places, labelled.about)
    found = agreement.StickerDetector.load().detect(agreement.decode_labelled(few, model))
    again = agreement.agreement(agreement.verdicts(few, found)).set_index("tag").loc["single"]
    table = pd.read_csv(REPORTS / "agreement.csv").set_index("tag").loc["single"]
    assert again["agreement"] == pytest.approx(table["agreement"], abs=0.026)  # a score may lie on the threshold


def test_generated_images_are_packed_with_what_generated_them(tmp_path: Path, model: JanusModel) -> None:
    asked = {"model": "m", "guidance": 2.0, "temperature": 0.7, "images": [{"prompt_line": 3, "seed": 9}]}
    (tmp_path / "prompts.json").write_text(json.dumps(asked))
    save_file({"tokens": torch.full((1, 576), 7, dtype=torch.int32)}, tmp_path / "images.safetensors")
    (tmp_path / "labels.jsonl").write_text(
        '{"image": 0, "things": {"lemon": 2, "dog": 1}, "places": {"lemon": [0.2, 0.5], "dog": [1, 0]}}\n'
    )
    back = read_labelled(tmp_path / "labels.jsonl", agreement.pack_labelled(tmp_path, model, tmp_path / "p.safetensors"))
    assert back.tokens.dtype == torch.int16
    assert back.prompts[0].prompt == json.loads(PROMPTS.read_text().splitlines()[2])["prompt"]
    assert back.things == [Counter({"lemon": 2, "dog": 1})]
    assert back.places == [{"lemon": (0.2, 0.5), "dog": (1.0, 0.0)}]


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a readable file of labelled images"):
        read_labelled(LABELS, tmp_path / "none.safetensors")

    asked = PROMPTS.read_text().splitlines()
    for other in (asked[:-1], [line.replace("three", "two") for line in asked]):
        (tmp_path / "other.jsonl").write_text("\n".join(other))
        with pytest.raises(DataError, match="generated from other prompts"):
            read_labelled(LABELS, IMAGES, tmp_path / "other.jsonl")
    (tmp_path / "other.jsonl").write_text("\n".join(line.replace("noto", "flat") for line in asked))  # no style was labelled
    assert len(read_labelled(LABELS, IMAGES, tmp_path / "other.jsonl").prompts) == 200
    lines = LABELS.read_text().splitlines()
    for text, complaint in (
        ("\n".join(lines[:3]), "labels of 3 images, .* holds 200"),
        ("\n".join(lines[1:]), "line 1 is of image 1; expected 0"),
        ('{"image": 0}', "not lines of"),
        ("{", "not lines of"),
    ):
        (tmp_path / "labels.jsonl").write_text(text)
        with pytest.raises(DataError, match=complaint):
            read_labelled(tmp_path / "labels.jsonl", IMAGES)
