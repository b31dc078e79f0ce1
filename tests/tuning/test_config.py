"""Study definitions: what is wrong is one sentence that names the key."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from headscope.errors import DataError
from headscope.models import load_model
from headscope.policy import CacheSpec
from headscope.tuning.config import LimitConfig, RunConfig, SearchConfig
from headscope.tuning.config_file import read_config
from tests.policy.shapes import SHAPE

SHIPPED = sorted((Path(__file__).parents[2] / "search").glob("*.toml"))


def written(tmp_path: Path, limit: str = 'keep = "20%"', search: str = "", top: str = "", prompts: str = "") -> Path:
    path = tmp_path / "study.toml"
    path.write_text(
        f'model = "stickers"\npolicy = "p.safetensors"\n{top}\n[limit]\n{limit}\n[search]\n{search}\n[prompts]\n{prompts}\n'
    )
    return path


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    found = read_config(written(tmp_path, search="strides = [4, 8]"))
    assert (found.limit.keep, found.limit.batch, found.search.trials, found.search.sampler) == (
        "20%",
        1,
        SearchConfig().trials,
        "tpe",
    )
    assert found.search.strides == (4, 8)
    assert found.replace(search=SearchConfig(), policy=None) == RunConfig(model="stickers")


def test_a_share_and_a_size_read_the_same_everywhere() -> None:
    assert LimitConfig(keep=0.2).keep == "0.2"  # type: ignore[arg-type]
    assert LimitConfig(memory=4096) == LimitConfig(memory="4096")  # type: ignore[arg-type]
    assert LimitConfig().keep == "20%"
    assert LimitConfig(keep="30%", batch=2).replace(keep=None, memory="1MiB") == LimitConfig(memory="1MiB", batch=2)


def test_a_share_is_counted_in_two_bytes_and_a_size_as_the_run_has_it() -> None:
    assert LimitConfig(keep="30%").spec(SHAPE, 5, dtype="float32", streams=2) == CacheSpec(SHAPE, 5, dtype="bfloat16")
    assert LimitConfig(keep="30%", dtype="fp16").spec(SHAPE, 5, dtype="float32", streams=2).dtype == "float16"
    assert LimitConfig(memory="8KiB").spec(SHAPE, 5, dtype="float32", streams=2).dtype == "float32"
    assert LimitConfig(memory="8KiB", dtype="bf16").spec(SHAPE, 5, dtype="float32", streams=2).dtype == "bfloat16"


def test_what_is_wrong_in_python_is_one_sentence_too() -> None:
    with pytest.raises(DataError, match=r"^trials: input should be greater than or equal to 0, found -1\.$"):
        SearchConfig(trials=-1)
    with pytest.raises(DataError, match=r"^sampler: grid: unknown; expected one of tpe"):
        SearchConfig().replace(sampler="grid")


@pytest.mark.parametrize(
    ("part", "text", "says"),
    [
        ("limit", 'keep = "20%"\nmemry = "3MiB"', "limit.memry: unknown key; expected one of keep, memory, batch"),
        ("limit", 'keep = "120%"', "limit.keep: 120%: expected more than 0% and at most 100%"),
        ("limit", 'keep = "20 apples"', "limit.keep: 20 apples: expected a share"),
        ("limit", 'memory = "12 MeB"', "limit.memory: 12 MeB: expected a size such as 12MiB"),
        ("limit", 'keep = "20%"\nmemory = "1MiB"', "limit: give keep or memory, not both"),
        ("limit", 'keep = "20%"\nbatch = 0', "limit.batch: input should be greater than or equal to 1, found 0"),
        ("limit", 'keep = "20%"\ndtype = "int3"', "limit.dtype: dtype int3: unknown"),
        (
            "limit",
            'keep = "20%"\ndtype = "float32"',
            "limit: a share is counted in two bytes a number, not in float32; leave dtype out, or give memory",
        ),
        ("limit", 'dtype = "float64"', "limit: a share is counted in two bytes a number, not in float64"),
        ("limit", 'keep = "20%"\nstreams = 3', "limit.streams: input should be 1 or 2, found 3"),
        ("limit", 'keep = "20%"\ncount_prefix = "no"', "limit.count_prefix: input should be a valid boolean, found 'no'"),
        ("prompts", 'file = "a"\ntexts = ["b"]', "prompts: give file or texts, not both"),
        ("search", 'sampler = "grid"', "search.sampler: grid: unknown; expected one of tpe"),
        ("search", 'trials = "many"', "search.trials: input should be a valid integer, found 'many'"),
        ("search", "strides = []", "search.strides: "),
        ("search", "seed = 9223372036854775808", "search.seed: "),
        (
            "top",
            'polciy = "x"',
            "polciy: unknown key; expected one of model, policy, dtype, guidance, seed, batch_size, limit, prompts, search",
        ),
    ],
)
def test_what_is_wrong_names_its_key(tmp_path: Path, part: str, text: str, says: str) -> None:
    with pytest.raises(DataError) as caught:
        read_config(written(tmp_path, **{part: text}))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_and_a_broken_file_are_said(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('[limit]\nkeep = "20%"\n')
    with pytest.raises(DataError, match="model: is missing; add it"):
        read_config(path)
    path.write_text("model = stickers")
    with pytest.raises(DataError, match="not a TOML file"):
        read_config(path)
    with pytest.raises(DataError, match=r"none\.toml"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_definition_is_good_and_names_its_policy(path: Path) -> None:
    assert read_config(path).policy == f"{path.stem}.safetensors"


def test_there_are_shipped_definitions() -> None:
    assert len(SHIPPED) >= 5


def test_paths_in_it_count_from_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    study, elsewhere = tmp_path / "a study", tmp_path / "elsewhere"
    shutil.copytree(tiny_folder, study / "models" / "tiny")
    elsewhere.mkdir()
    for folder in (study, elsewhere):
        (folder / "p.txt").write_text(folder.name)
    path = study / "study.toml"
    path.write_text('model = "models/tiny"\npolicy = "p.safetensors"\n[limit]\nkeep = "20%"\n[prompts]\nfile = "p.txt"\n')
    monkeypatch.chdir(elsewhere)
    found = read_config(Path("../a study/study.toml"))
    monkeypatch.chdir(tmp_path)
    assert found.prompts.file is not None
    assert Path(found.prompts.file).read_text() == "a study"
    assert load_model(found.model).name == "tiny"


def test_a_model_of_the_working_folder_is_not_taken_for_one_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd" / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "cwd" / "stickers").mkdir()
    path = written(tmp_path)
    monkeypatch.chdir(tmp_path / "cwd")
    assert read_config(path).model == "stickers"  # a name of ours is no folder
    path.write_text(path.read_text().replace("stickers", "models/tiny"))
    with pytest.raises(DataError, match=r"study\.toml: model: models/tiny is no folder beside this file"):
        read_config(path)
    path.write_text(path.read_text().replace("models/tiny", "deepseek-community/Janus-Pro-1B"))
    assert read_config(path).model == "deepseek-community/Janus-Pro-1B"


@pytest.mark.parametrize(
    "name", ["../../escaped.safetensors", "/tmp/x", "a/b", "..\\\\x", "", ".", "..", ".hidden", "a\\u0000b", "a\\nb"]
)
def test_a_policy_is_a_bare_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(f'model = "stickers"\npolicy = "{name}"\n[limit]\nkeep = "20%"\n')
    with pytest.raises(DataError, match=r"policy: expected the bare name of a file") as caught:
        read_config(path)
    assert str(caught.value).isprintable()
