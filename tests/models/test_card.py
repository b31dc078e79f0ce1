"""What a user says of a network that draws, in headscope.toml or to `RasterModel`: each wrong word is a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headscope.errors import ModelError
from headscope.geometry import Geometry
from headscope.models import RasterModel, load_model
from headscope.policy import Policy
from headscope.runtime import generate
from tests.cli.command import headscope
from tests.models.test_plain import made as plain
from tests.models.test_raster import CARD, CODES, FIRST, gpt2, llama, model_of

PROMPT = r'prompt "cat" is .*, expected a list of tokens, such as \[515\]'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rows = ", r"headscope\.toml: cannot be read as TOML"),
        ("row = 4", '"row": no such key; known are rows, cols'),
        ('rows = "4"', 'rows is "4", expected a whole number from 1'),
        ("rows = true", "rows is true, expected a whole number from 1"),
        ("rows = 4\ncols = 4", "lacks codes, expected the first token that is a code and how many there are, such as"),
        ("rows = 4\ncols = 4\ncodes = [3]", r"codes is \[3\], expected the first token"),
        ("rows = 4\ncols = 4\ncodes = [true, 3]", r"codes is \[true, 3\], expected the first token"),
        ("rows = 0\ncols = 4\ncodes = [3, 12]", r"headscope\.toml: rows is 0"),
    ],
)
def test_a_card_that_is_wrong_is_a_sentence(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "headscope.toml").write_text(line)
    with pytest.raises(ModelError, match=said):
        load_model(str(tmp_path), "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network without a card."""
    path = tmp_path_factory.mktemp("models") / "mine"
    gpt2().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("start = [0]", "start = [true]", r"start is \[true\], expected a list of tokens"),
        ("cat = [16]", "cat = [16.5]", PROMPT),
        ("cat = [16]", "cat = [true]", PROMPT),
        ("cat = [16]", "'' = [16]", 'a prompt is named "", expected a text'),
        ("guidance = 2.0", "guidance = -1", "mine: guidance is -1, expected a scale from 0 to 100"),
        ("guidance = 2.0", "guidance = nan", "guidance is NaN, expected a finite number"),
        ("guidance = 2.0", "temperature = 0", "temperature is 0, expected a number above 0, at most 100"),
        ("guidance = 2.0", "temperature = -1.0", "temperature is -1.0, expected a number above 0"),
        ("guidance = 2.0", "top_k = 0", "top_k is 0, expected a whole number from 1"),
        ("guidance = 2.0", "top_k = 13", "top_k is 13, expected None for all codes, or 1 to 12"),
        ("guidance = 2.0", f"row_end = {FIRST}", "row_end 3 is one of the codes 3 to 14; expected a token of its own"),
        (
            f"[{FIRST}, {CODES}]",
            f"[{FIRST}, 0]",
            r"codes are \[3, 0\], expected the first token that is a code and how many there are, or the token of",
        ),
    ],
)
def test_what_a_card_says_of_the_network_is_tried_when_it_is_loaded(folder: Path, old: str, new: str, said: str) -> None:
    (folder / "headscope.toml").write_text(CARD.replace(old, new))
    with pytest.raises(ModelError, match=said) as told:
        load_model(str(folder), "cpu")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"geometry": (4, 4)}, r"mine: geometry is \[4, 4\], expected headscope.Geometry\(rows, cols\)"),
        ({"codes": 12}, "codes is 12, expected tokens, a list of whole numbers"),
        ({"codes": (3,)}, r"codes are \[3\], expected the first token that is a code and how many there are, or the"),
        ({"codes": (3, 12, 3)}, "token 3 stands for two codes; expected a token of its own for each"),
        ({"codes": (3, 12, 20)}, r"codes \[3, 12, 20\], its vocabulary has 20; expected tokens from 0 to 19"),
        ({"start": 0}, "start is 0, expected tokens"),
        ({"start": "0"}, 'start is "0", expected tokens'),
        ({"start": [0.5]}, r"start is \[0.5\], expected tokens"),
        ({"row_end": True}, r"row_end is \[true\], expected tokens"),
        ({"prompts": ["cat"]}, r'prompts is \["cat"\], expected tokens by prompt, such as \{"cat": \[515\]\}'),
        ({"prompts": {"cat": 16}}, 'prompt "cat" is 16, expected tokens'),
        ({"pixels": 3}, r"pixels is an int, expected a function of codes \[B, N\] to images"),
        ({"guidance": "2"}, 'guidance is "2", expected a scale'),
        ({"top_k": 2.5}, r"top_k is 2.5, expected None"),
    ],
)
@pytest.mark.parametrize("network", [gpt2, plain])
def test_what_is_no_argument_is_a_sentence(network: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        model_of(network(), **more)


def test_a_name_that_can_not_be_printed_is_refused_in_one_line() -> None:
    for name, said in (("a\nb", r'^a\\nb: name is "a\\nb", expected a text'), ("", '^the model: name is "", expected a text')):
        with pytest.raises(ModelError, match=said):
            RasterModel(gpt2(), name, geometry=Geometry(4, 4), codes=(FIRST, CODES), start=[0])


def test_whole_numbers_may_be_anybodys_and_lists_are_tuples() -> None:
    one = model_of(gpt2(), start=torch.tensor([0]), codes=[np.int64(FIRST), CODES])
    assert one.shape.architecture == model_of(gpt2()).shape.architecture
    assert one.tokenize(["a"]).ids.tolist() == [[0]]


@pytest.mark.parametrize("make", [gpt2, llama, plain])
def test_codes_may_lie_scattered_over_the_vocabulary(make) -> None:
    """A network whose tokens are dealt anew gives the same images by the list of where they went."""
    network, places = make(), torch.randperm(20, generator=torch.Generator().manual_seed(3)).tolist()
    dealt = make()
    with torch.no_grad():
        for (name, one), other in zip(network.named_parameters(), dealt.parameters(), strict=True):
            if any(part in name for part in ("wte", "embed_tokens", "words", "head")):  # a row a word
                other[places] = one[:20]
    one = model_of(network, geometry=Geometry(3, 4, 1), row_end=19)
    scattered = {"codes": [places[FIRST + code] for code in range(CODES)], "start": [places[0]], "row_end": places[19]}
    other = model_of(dealt, geometry=Geometry(3, 4, 1), **scattered)
    small = {"window": 4, "heavy": 4, "stride": 5, "prefix": 1}
    for kept in (None, small):
        policies = [None if kept is None else Policy.uniform(model.shape, **kept) for model in (one, other)]
        found = [generate(model, ["a", "b"], 4, policy=policy) for model, policy in zip((one, other), policies, strict=True)]
        assert torch.equal(found[0].tokens, found[1].tokens)
    assert one.shape.architecture != other.shape.architecture
    assert model_of(network, codes=range(FIRST, FIRST + CODES)).shape.architecture == model_of(network).shape.architecture


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (
            lambda codes: torch.zeros(len(codes), 4, 4, 3),
            r"pixels gave torch.float32 \[1, 4, 4, 3\], expected uint8 \[1, height",
        ),
        (
            lambda codes: torch.zeros(2, 4, 4, 3, dtype=torch.uint8),
            r"pixels gave torch.uint8 \[2, 4, 4, 3\], expected uint8 \[1",
        ),
        (lambda codes: codes.numpy(), "pixels gave a ndarray, expected uint8"),
        (lambda codes: codes.nothing, r"pixels failed with AttributeError \(.*nothing"),
    ],
)
def test_pixels_that_are_none_are_a_sentence(pixels: Any, said: str) -> None:
    model = RasterModel(gpt2(), "mine", geometry=Geometry(4, 4), codes=(FIRST, CODES), start=[0], pixels=pixels)
    with pytest.raises(ModelError, match=said):
        model.to_images(torch.zeros(1, 16, dtype=torch.int64))


def test_a_trace_says_how_many_prompts_there_are_and_begins_with_nothing_that_can_not_be(
    folder: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    (folder / "headscope.toml").write_text(CARD)
    found = headscope(capsys, monkeypatch, "trace", folder, "--out", tmp_path / "run", "--device", "cpu")
    assert (found.status, "prompts: 2 to trace and search on, 1 to judge by\n" in found.out) == (0, True)
    (folder / "headscope.toml").write_text(CARD.replace("unconditional = [1]", "").replace("guidance = 2.0", ""))
    found = headscope(capsys, monkeypatch, "trace", folder, "--out", tmp_path / "other", "--guidance", "3", "--device", "cpu")
    assert (found.status, "guidance 3: mine has no stream to guide by" in found.err) == (2, True)
    assert not (tmp_path / "other").exists()


def test_what_is_counted_is_what_the_model_caches(folder: Path, capsys, monkeypatch) -> None:
    """One stream where nothing is guided: two would make a limit twice too large."""
    (folder / "headscope.toml").write_text(CARD)
    for guidance, more, said in ((2, [], "2 streams"), (1, [], "1 stream\n"), (1, ["--guidance"], "2 streams")):
        (folder / "headscope.toml").write_text(CARD.replace("guidance = 2.0", f"guidance = {guidance}"))
        found = headscope(capsys, monkeypatch, "budget", folder, "--device", "cpu", *more)
        assert (found.status, said in found.out) == (0, True), found.out
