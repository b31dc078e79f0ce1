"""The card of a policy: its numbers are the policy's, whatever else stands in the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from headscope.errors import DataError
from headscope.policy import CacheSpec, Limit, Policy, load_policy
from headscope.reporting import write_card
from headscope.reporting.card import card_text
from tests.policy.shapes import SHAPE


def table(text: str) -> dict[str, str]:
    """The first table, by what is said."""
    rows = re.findall(r"^\| ([a-z][^|]*) \| (.*) \|$", text.split("## ")[0], re.MULTILINE)
    return dict(rows)


def layers(text: str) -> list[list[str]]:
    """The rows of the last table."""
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\| \d.*\|$", text, re.MULTILINE)]


def made(**facts: object) -> Policy:
    return Policy.uniform(SHAPE, window=6, heavy=2, stride=6, prefix=5).replace(**facts)


def test_a_card_and_its_picture(tmp_path: Path) -> None:
    policy = load_policy("stickers-20")
    card, picture = write_card(policy, tmp_path / "new" / "c.md", "stickers-20", prompt="red apple")
    text, said = card.read_text(encoding="utf-8"), table(card.read_text(encoding="utf-8"))
    assert text.startswith("# stickers-20\n")
    assert said["model"] == "`stickers` (bundled), weights 2cb73e74dc1f0503"
    assert said["limit"].startswith(
        "20 % of a plain cache of one guided image, two bytes a number, prompt of 13 tokens included"
    )
    assert said["limit"].endswith("661,094 bytes, of which it allocates 660,992")
    seen = "0.0163 nats a token [0.0142, 0.0187] on 32 prompts that the search never saw; top code the same at 95.0%"
    assert said["loses"] == seen
    assert '`headscope generate stickers "red apple" --policy stickers-20 --out images`. It is refused' in text
    assert "![What each head keeps](<c.png>)" in text
    rows = layers(text)
    assert sum(int(row[-1].replace(",", "")) for row in rows) == 660_992
    heads = sorted((int(row[0]), int(head)) for row in rows for head in row[1].split(","))
    assert heads == [(layer, head) for layer in range(8) for head in range(8)]
    assert picture == card.with_suffix(".png")
    with Image.open(picture) as image:
        assert image.width > 1000


def test_short_prompts_have_a_column_where_there_are_any() -> None:
    prompt = torch.ones(3, 4, dtype=torch.uint8)
    prompt[1, 2] = 0
    policy = made(prompt=prompt)
    text = card_text(policy, "p", "p.png")
    assert "1 with only the first and last token of the prompt" in table(text)["keeps"]
    assert [row[7] for row in layers(text)] == ["whole", "whole", "ends", "whole"]
    assert sum(int(row[-1].replace(",", "")) for row in layers(text)) == policy.accounting()["bytes"]
    assert "prompt" not in table(card_text(made(), "p", "p.png"))["keeps"].replace("`headscope policy show p` prints them", "")


def test_what_was_measured_says_on_what() -> None:
    result = {"replay_kl": 0.5, "kl_low": 0.4, "kl_high": 0.6, "free_kl": 0.7, "images": 3, "top1": 0.25}
    on = {"model": "toy", "weights": "w" * 64, "prompts": 3, "dtype": "float32"}
    said = table(card_text(made(results={"measured": result}, provenance={"measured_on": on}), "p.safetensors", "p.png"))
    assert said["measured"] == (
        f"0.5000 nats a token [0.4000, 0.6000] on 3 unseen prompts of a run of `toy`, weights {'w' * 16}, in float32; "
        "0.7000 on images that it made itself; top code the same at 25.0%"
    )


def test_what_was_not_measured_says_so_and_other_limits_are_said() -> None:
    moved = made(provenance={"transferred": {"from": "stickers-20", "kind": "by map", "measured": False}})
    said = table(card_text(moved, "p", "p.png"))
    assert said["not measured"].startswith("It was transferred from stickers-20 (by map) and has not been measured on toy")
    assert said["limit"].startswith("none; it allocates")
    spec = CacheSpec(SHAPE, 5, batch=4, streams=1, dtype="float32", count_prefix=False)
    said = table(card_text(made(limit=Limit(90_000, spec)), "p", "p.png"))
    assert said["limit"].endswith("a plain cache of 4 images, in float32, prompt of 5 tokens left out takes 110,592")


NAMES = st.one_of(
    st.sampled_from(
        ["unseen", "measured", "measured_on", "replay_kl", "kl_low", "free_kl", "images", "top1", "model", "weights"]
    ),
    st.sampled_from(["transferred", "method", "origin", "calibration_kl", "from", "kind"]),
    st.text(max_size=5),
)
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["a|b", "`x`", "<b>", "1\n| 2 |"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=4), st.dictionaries(NAMES, VALUES, max_size=4))
def test_whatever_a_file_says_of_itself_the_tables_stay_tables(results: dict, provenance: dict) -> None:
    text = card_text(made(results=results, provenance=provenance), "p", "p.png")
    lines = text.split("\n")
    assert lines[:4] == ["# p", "", "| | |", "|---|---|"]
    end = lines.index("", 2)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines[2:end])
    assert lines[end + 3] == "## What each head keeps"


def test_a_card_is_markdown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"card\.txt: a card is Markdown; name a file that ends in \.md"):
        write_card(made(), tmp_path / "card.txt", "p")
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        write_card(made(), tmp_path / "folder.md", "p")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.md"]
