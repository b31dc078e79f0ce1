"""GenEval's rules on hand-made detections, and intervals over prompts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from headscope.errors import DataError
from headscope.stickereval.detector import Detection
from headscope.stickereval.grader import StickerEval, category_scores, judge, paired_difference, relations
from headscope.stickereval.prompts import GradingPrompt, Wanted


def thing(name: str, x: float = 0.5, y: float = 0.5, style: str = "noto", side: float = 0.4, score: float = 0.9) -> Detection:
    return Detection(name, style, score, x, y, side)


def asked(tag: str, *include: Wanted) -> GradingPrompt:
    return GradingPrompt(tag, include, "a prompt")


LEMON, DOG = thing("lemon", 0.25), thing("dog", 0.75)


@pytest.mark.parametrize(
    ("found", "wrong"),
    [([LEMON], []), ([DOG, LEMON], []), ([LEMON, LEMON], []), ([DOG], ["found 0 x lemon, expected 1"])],
)
def test_single_wants_the_class_whatever_else_is_there(found: list[Detection], wrong: list[str]) -> None:
    assert judge(found, asked("single", Wanted("lemon", 1))) == wrong


@pytest.mark.parametrize(("count", "right"), [(2, False), (3, True), (4, False)])
def test_counting_wants_the_exact_number(count: int, right: bool) -> None:
    reasons = judge([LEMON] * count + [DOG], asked("counting", Wanted("lemon", 3)))
    assert reasons == ([] if right else [f"found {count} x lemon, expected 3"])


def test_two_wants_both() -> None:
    prompt = asked("two", Wanted("lemon", 1), Wanted("dog", 1))
    assert judge([DOG, LEMON], prompt) == []
    assert judge([LEMON], prompt) == ["found 0 x dog, expected 1"]
    assert judge([], prompt) == ["found 0 x lemon, expected 1", "found 0 x dog, expected 1"]


def test_style_is_judged_on_the_class_or_else_on_the_best_detection() -> None:
    prompt = asked("style", Wanted("lemon", 1, style="flat"))
    flat, noto = thing("lemon", style="flat"), thing("dog", style="noto")
    assert judge([noto, flat], prompt) == []
    assert judge([thing("dog", style="flat")], prompt) == []  # a wrong class does not count here
    assert judge([noto, thing("owl", style="flat")], prompt) == ["found dog in noto style, expected flat"]
    assert judge([], prompt) == ["found nothing, expected flat style"]


def test_position_wants_both_in_that_relation() -> None:
    prompt = asked("position", Wanted("dog", 1), Wanted("lemon", 1, relation="left of", other=0))
    assert judge([LEMON, DOG], prompt) == []
    assert judge([LEMON], prompt) == ["found 0 x dog, expected 1"]
    turned = [thing("lemon", 0.75), thing("dog", 0.25)]
    assert judge(turned, prompt) == ["found lemon right of dog, expected left of"]
    near = [thing("lemon", 0.50), thing("dog", 0.55)]
    assert judge(near, prompt) == ["found lemon beside dog, expected left of"]


def test_position_reads_the_best_detection_of_each_class() -> None:
    prompt = asked("position", Wanted("dog", 1), Wanted("lemon", 1, relation="left of", other=0))
    assert judge([LEMON, DOG, thing("lemon", 0.9, score=0.5)], prompt) == []


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ((-0.5, -0.2), {"left of"}),  # the docstring's example
        ((0.5, 0.0), {"right of"}),
        ((0.0, -0.5), {"above"}),
        ((0.1, 0.5), {"below"}),
        ((0.5, 0.5), {"right of", "below"}),
        ((0.07, 0.07), set()),
        ((0.0, 0.0), set()),
    ],
)
def test_relations_follow_genevals_rule(offset: tuple[float, float], expected: set[str]) -> None:
    assert relations(thing("lemon", 0.5 + offset[0], 0.5 + offset[1]), thing("dog", 0.5, 0.5)) == expected


def table(**scores: list[list[bool]]) -> pd.DataFrame:
    """Prompts of each category, each with the grades of its seeds."""
    rows = [
        (tag, f"{tag} {number}", grade)
        for tag, prompts in scores.items()
        for number, grades in enumerate(prompts)
        for grade in grades
    ]
    return pd.DataFrame(rows, columns=["tag", "prompt", "correct"])


def test_scores_are_means_over_prompts_with_intervals_over_prompts() -> None:
    scores = category_scores(table(single=[[True] * 8, [False] * 8] * 20, two=[[True, False] * 4] * 40)).set_index("category")
    assert list(scores.index) == ["single", "two", "overall"]
    assert scores["score"].tolist() == [0.5, 0.5, 0.5]
    assert scores["images"].tolist() == [320, 320, 640]
    # Forty prompts that are all right or all wrong: +- 1.96 * sqrt(.25 / 40), as if each had one image.
    assert scores.loc["single", "high"] - scores.loc["single", "low"] == pytest.approx(2 * 1.96 * 0.0791, rel=0.1)
    assert scores.loc["two", "low"] == scores.loc["two", "high"] == 0.5


def test_the_paired_difference_is_narrower_than_either_score() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(40) < 0.5
    one = table(single=[[bool(h)] * 4 for h in hard])
    other = table(single=[[bool(h), bool(h), bool(h), False] for h in hard])
    difference = paired_difference(one, other).set_index("category").loc["single"]
    assert difference["difference"] == pytest.approx(hard.mean() / 4)
    score = category_scores(one).set_index("category").loc["single"]
    assert difference["high"] - difference["low"] < (score["high"] - score["low"]) / 3
    assert paired_difference(one, one)[["difference", "low", "high"]].to_numpy().max() == 0


def test_tables_of_other_prompts_are_not_compared() -> None:
    with pytest.raises(DataError, match=r"Prompt 'single 1' \(single\) is in one of the two graded tables only"):
        paired_difference(table(single=[[True], [True]]), table(single=[[True]]))
    with pytest.raises(DataError, match="graded table is empty"):
        category_scores(table())


def test_images_of_another_size_and_a_missing_prompt_are_errors() -> None:
    grader = StickerEval()
    with pytest.raises(DataError, match=r"Images of shape \[1, 64, 64, 3\].*grades \[images, 96, 96, 3\]"):
        grader.grade(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), [asked("single", Wanted("lemon", 1))])
    with pytest.raises(DataError, match="2 images for 1 prompts"):
        grader.grade(torch.zeros(2, 96, 96, 3), [asked("single", Wanted("lemon", 1))])
    with pytest.raises(DataError, match=r"dtype torch\.int64"):
        grader.grade(torch.zeros(1, 96, 96, 3, dtype=torch.int64), [asked("single", Wanted("lemon", 1))])
