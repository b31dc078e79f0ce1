"""A model of one's own: a network of transformers that draws, from Python, from a folder with a card, and from a file."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from headscope.errors import DataError, ModelError
from headscope.geometry import Geometry
from headscope.models import RasterModel, load_model, source_of
from headscope.models.own_file import load_own
from headscope.pipeline import run
from headscope.policy import CacheSpec, Policy
from headscope.run_folder import RunFolder
from headscope.runtime import Sampling, decoder_name, generate
from headscope.tuning import LimitConfig, PromptConfig, Replay, RunConfig, SearchConfig

ROWS, COLS, CODES, FIRST = 4, 4, 12, 3
CARD = f"""
rows = {ROWS}
cols = {COLS}
codes = [{FIRST}, {CODES}]
start = [0]
unconditional = [1]
guidance = 2.0

[prompts]
cat = [16]
dog = [17, 2]
bird = [18]
"""


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=24, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    return louder(GPT2LMHeadModel(config))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=24,
    )
    return louder(LlamaForCausalLM(config))


def louder(network: torch.nn.Module) -> torch.nn.Module:
    """Attention that is far from uniform."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return network.eval()


def model_of(network: torch.nn.Module, **more: object) -> RasterModel:
    settings = {"geometry": Geometry(ROWS, COLS), "codes": (FIRST, CODES), "start": [0], **more}
    return RasterModel(network, "mine", **settings)  # type: ignore[arg-type]


@torch.inference_mode()
def slowly(network: torch.nn.Module, start: list[int], other: list[int] | None = None, scale: float = 1.0) -> list[int]:
    """The most likely codes, token by token, without a cache and without padding."""
    drawn: list[int] = []
    for _ in range(ROWS * COLS):
        of = [network(torch.tensor([[*ids, *drawn]])).logits[0, -1] for ids in (start, other or start)]
        logits = of[1] + scale * (of[0] - of[1])
        drawn.append(FIRST + int(logits[FIRST : FIRST + CODES].argmax()))
    return [one - FIRST for one in drawn]


@pytest.mark.parametrize("make", [gpt2, llama])
def test_it_draws_what_the_network_says(make) -> None:
    network = make()
    prompts = {"cat": [16], "dog": [17, 2, 5]}  # of unlike lengths: one is padded
    model = model_of(network, prompts=prompts, unconditional=[1], guidance=2.0)
    whole = Policy.uniform(model.shape, window=ROWS * COLS - 1, stride=COLS, prefix=3)
    for policy in (None, whole):
        found = generate(model, ["cat", "dog"], sampling=Sampling(temperature=0.0), policy=policy).tokens.tolist()
        assert found == [slowly(network, ids, [1], 2.0) for ids in prompts.values()]
    found = generate(model, ["dog"], sampling=Sampling(guidance=1.0, temperature=0.0), policy=whole).tokens.tolist()
    assert found == [slowly(network, [17, 2, 5])]
    assert decoder_name(model, whole) == ("llama_cpu" if make is llama else "transformers")


def test_without_another_stream_nothing_is_guided() -> None:
    model = model_of(gpt2())
    with pytest.raises(DataError, match=r"guidance 3: mine has no stream to guide by .*, expected 1"):
        generate(model, ["a"], sampling=Sampling(guidance=3.0))
    assert generate(model, ["a"], sampling=Sampling(guidance=1.0)).guidance == 1.0


def test_prompts_that_mean_nothing_are_names() -> None:
    model = model_of(gpt2())
    samples = generate(model, ["image 1", "image 2"], [4, 4])
    assert torch.equal(*samples.tokens)
    assert model.to_images(samples.tokens).shape == (2, 32, 32, 3)
    assert model.guidance == 1.0


@pytest.mark.parametrize("make", [gpt2, llama])
def test_an_image_that_begins_by_itself_is_drawn_as_the_network_says(make) -> None:
    network = make()
    model = model_of(network, start=[])
    whole = Policy.uniform(model.shape, window=ROWS * COLS - 1, stride=COLS, prefix=0)
    split = Policy.uniform(model.shape, window=5, heavy=ROWS * COLS - 6, stride=COLS, prefix=0)
    for policy in (None, whole, split):
        for first in generate(model, ["a", "b"], [1, 2], sampling=Sampling(temperature=1e-6), policy=policy).tokens.tolist():
            rest = slowly(network, [FIRST + first[0]])[: ROWS * COLS - 1]
            assert first[1:] == rest
    firsts = generate(model, ["a"] * 60, sampling=Sampling(top_k=1)).tokens[:, 0]
    assert len(firsts.unique()) > CODES // 2  # drawn evenly: no code is likelier


@torch.inference_mode()
def with_forced_ends(network: torch.nn.Module, start: list[int], rows: int, cols: int, end: int) -> list[int]:
    """The most likely codes, token by token, each row ended by `end`."""
    ids = list(start)
    for _ in range(rows):
        for _ in range(cols):
            ids.append(FIRST + int(network(torch.tensor([ids])).logits[0, -1, FIRST : FIRST + CODES].argmax()))
        ids.append(end)
    return [CODES if one == end else one - FIRST for one in ids[len(start) :]]


@pytest.mark.parametrize("make", [gpt2, llama])
def test_row_ends_are_forced_cached_and_counted(make) -> None:
    network, prompts = make(), {"cat": [16], "dog": [17, 2, 5]}
    model = model_of(network, geometry=Geometry(3, 4, 1), row_end=19, prompts=prompts)
    assert (model.vocabulary, model.shape.geometry.tokens) == (CODES + 1, 15)
    whole = Policy.uniform(model.shape, window=14, stride=5, prefix=3)
    split = Policy.uniform(model.shape, window=4, heavy=10, stride=5, prefix=3)
    for policy in (None, whole, split):
        samples = generate(model, list(prompts), sampling=Sampling(temperature=0.0), policy=policy)
        assert samples.tokens.tolist() == [with_forced_ends(network, ids, 3, 4, 19) for ids in prompts.values()]
    hot = generate(model, ["cat"] * 8, sampling=Sampling(temperature=100.0)).tokens.view(8, 3, 5)
    assert (hot[..., 4] == CODES).all()
    assert (hot[..., :4] < CODES).all()
    bare = model_of(network, geometry=Geometry(3, 4, 1), row_end=19, start=[])
    firsts = generate(bare, ["a"] * 60, sampling=Sampling(temperature=100.0)).tokens[:, 0]
    assert (firsts < CODES).all()
    images = model.to_images(hot.flatten(1))
    assert images.shape == (8, 24, 32, 3)
    assert CacheSpec.of(model, prefix=3).full_bytes == 2 * 2 * 4 * (3 + 15) * model.shape.kv_heads * 8
    given: list[torch.Tensor] = []
    blank = torch.zeros(8, 1, 1, 3, dtype=torch.uint8)
    paint = model_of(network, geometry=Geometry(3, 4, 1), row_end=19, pixels=lambda codes: given.append(codes) or blank)
    paint.to_images(hot.flatten(1))
    assert torch.equal(given[0], hot[..., :4].flatten(1).long())


def test_a_replay_loses_nothing_at_row_ends() -> None:
    model = model_of(gpt2(), geometry=Geometry(3, 4, 1), row_end=19, unconditional=[1], guidance=2.0)
    replay = Replay(model, generate(model, ["a", "b"], 0))
    loss = replay.measure(Policy.uniform(model.shape, window=1, stride=5, prefix=1)).divergence
    ends = torch.arange(1, 15) % 5 == 4
    assert (loss[:, ends] == 0).all()
    assert (loss[:, ~ends][:, 2:] > 0).all()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"codes": (10, 12)}, "codes 10 to 21, its vocabulary has 20"),
        ({"start": [], "unconditional": [1]}, r"start \[\]: expected one token or more, from 0 to 19"),
        ({"prompts": {"cat": []}}, r"cat \[\]: expected one token or more"),
        ({"start": [20]}, r"start \[20\]"),
        ({"prompts": {"cat": [0] * 9}}, "cat and 16 image tokens are more than its 24 positions"),
        ({"row_end": 19}, "0 tokens end a row, and `row_end` is 19; expected one token and its number, or neither"),
        ({"geometry": Geometry(3, 4, 1)}, "1 tokens end a row, and `row_end` is None"),
        ({"geometry": Geometry(3, 4, 1), "row_end": 20}, r"row_end \[20\]: expected one token"),
        ({"guidance": 2.0}, "guidance 2 needs `unconditional`"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(more: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        model_of(gpt2(), **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "mine"
    gpt2().save_pretrained(path)
    (path / "headscope.toml").write_text(CARD)
    return path


def test_a_folder_with_a_card_goes_the_whole_way(folder: Path, tmp_path: Path) -> None:
    config = RunConfig(
        model=str(folder),
        limit=LimitConfig(keep="60%"),
        prompts=PromptConfig(texts=("cat", "dog", "bird"), calibration=2, unseen=1),
        search=SearchConfig(trials=2, table_images=1, strides=(4,), bits="16"),
    )
    run(config, tmp_path / "run", device="cpu")
    table = pd.read_csv(tmp_path / "run" / "methods.csv").set_index("method")
    assert {"full", "searched", "h2o"} <= set(table.index)
    assert table.loc["full", "replay_kl"] == pytest.approx(0, abs=1e-6)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_a_card_may_name_the_token_that_ends_a_row(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path)
    (tmp_path / "headscope.toml").write_text(f"rows = 3\ncols = 4\nrow_end = 19\ncodes = [{FIRST}, {CODES}]\nstart = [0]\n")
    model = load_model(str(tmp_path), "cpu")
    assert model.shape.geometry == Geometry(3, 4, 1)
    found = generate(model, ["a"], sampling=Sampling(temperature=0.0)).tokens[0].tolist()
    assert found == with_forced_ends(gpt2(), [0], 3, 4, 19)


def test_prompts_come_from_the_card(folder: Path) -> None:
    from headscope.pipeline.prompts import default_prompts

    assert default_prompts(str(folder)) == ["cat", "dog", "bird"]
    with pytest.raises(DataError, match="prompt 'fish': mine knows 3 prompts, such as cat, dog, bird"):
        generate(load_model(str(folder), "cpu"), ["fish"])


SOURCE = """
import sys
sys.path.insert(0, {root!r})
from tests.models.test_raster import gpt2, model_of

def load(device, dtype):
    return model_of(gpt2().to(device, dtype))

def less(device, dtype):
    return object()

def broken(device, dtype):
    raise RuntimeError("no weights here")

def leaves(device, dtype):
    raise SystemExit(3)

def unnamed(device, dtype):
    model = model_of(gpt2())
    model.name = "a\\nb"
    return model
"""


def test_a_function_in_a_file_gives_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(SOURCE.format(root=str(Path(__file__).parents[2])))
    monkeypatch.chdir(tmp_path)
    model = load_model("own.py:load", "cpu")
    assert isinstance(model, RasterModel)
    config = RunConfig(
        model="own.py:load",
        limit=LimitConfig(keep="60%"),
        prompts=PromptConfig(texts=("a", "b"), calibration=1, unseen=1),
        search=SearchConfig(quick=True),
    )
    report = run(config, tmp_path / "run", device="cpu")
    assert report.is_file()
    monkeypatch.chdir("/")
    assert source_of(RunFolder(tmp_path / "run")) == f"{tmp_path / 'own.py'}:load"  # found again from elsewhere


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone.py:load", "there is no file gone.py"),
        ("own.py:draw", "own.py has no function draw"),
        ("own.py:less", "gave an object without name, shape, vocabulary, max_prefix and more"),
        ("own.py:broken", r"broken\('cpu', torch.float32\) failed with RuntimeError \(no weights here\)"),
        ("own.py:leaves", r"leaves\('cpu', torch.float32\) failed with SystemExit \(3\)"),
        ("own.py:unnamed", r'own.py:unnamed: name is "a\\nb", expected a text'),
        ("bad.py:load", "bad.py cannot be run, SyntaxError"),
    ],
)
def test_a_file_that_gives_none_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    (tmp_path / "own.py").write_text(SOURCE.format(root=str(Path(__file__).parents[2])))
    (tmp_path / "bad.py").write_text("def load(:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=re.compile(said)):
        load_own(name, "cpu", torch.float32)
