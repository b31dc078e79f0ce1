"""The benchmark of a GPU, dry: every step on the CPU, and what the runner does when one fails, hangs or dies."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from headscope.benchmarks.gpu import faults, more, records, runner
from headscope.benchmarks.gpu.context import Context, check_card, check_memory
from headscope.benchmarks.gpu.events import _around
from headscope.benchmarks.gpu.roofline import Part, Roofline, live_bytes, step_parts, weight_bytes
from headscope.benchmarks.gpu.runner import run_steps
from headscope.benchmarks.gpu.steps import STEPS, Step, steps_of
from headscope.benchmarks.gpu.table import decode_rows, main_figures
from headscope.benchmarks.gpu.tokens import first_difference
from headscope.benchmarks.gpu.variants import policies
from headscope.benchmarks.shapes import SIZES, random_janus
from headscope.errors import DataError, ModelError
from headscope.geometry import Geometry
from headscope.policy import ModelShape, Policy

ABOUT = {"step", "shape", "dtype", "device", "what", "value", "unit", "at"}


def dry(out: Path, step: str = "card") -> Context:
    return Context(step, out, "dry", "float32", "cpu", 1, until=time.time() + 300, dry=True)


def values(out: Path, what: str) -> list[object]:
    return [one["value"] for one in records.read(out) if one["what"] == what]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that every step has written into."""
    out = tmp_path_factory.mktemp("measured")
    for name, step in STEPS.items():
        step.run(dry(out, name))
    return out


@pytest.mark.parametrize("name", STEPS)
def test_every_step_runs_dry_and_names_its_decoder(measured: Path, name: str) -> None:
    mine = [one for one in records.read(measured) if one["step"] == name]
    assert mine
    assert all(set(one) >= ABOUT for one in mine)
    assert not [one for one in mine if one["what"] == "fault"]
    timed = [one for one in mine if one["what"] in ("batch of images", "step", "tokens equal to the CPU's")]
    assert bool(timed) == (name in ("tokens", "events", "images", "more"))
    theirs = {"transformers generate_static", "transformers generate_dynamic"} if name == "images" else set()
    assert {one["decoder"] for one in timed} <= {"llama_cuda", *theirs}
    assert all(one["predicted"] is not None for one in timed)


def test_both_sides_give_images_of_all_variants(measured: Path) -> None:
    rows = decode_rows([one for one in records.read(measured) if one["step"] == "images"])
    assert [row["variant"] for row in rows] == ["20", "full", "20_at_8", "20_at_4", "generate_static", "generate_dynamic"]
    assert [row["batches"] for row in rows] == [2, 2, 2, 2, 1, 1]
    assert all(row["tokens"] == 4 for row in rows)


def test_tokens_are_the_cpu_s(measured: Path) -> None:
    assert values(measured, "tokens equal to the CPU's") == [1.0] * 3


def test_no_kernel_is_off(measured: Path) -> None:
    assert values(measured, "kernels that are off") == ["none"]


def test_a_profile_names_its_variant(measured: Path) -> None:
    assert (measured / "profile.txt").read_text().startswith("20: dry, batch 1, cpu\n2 steps from token 2\n")


def test_the_first_token_that_differs_is_told() -> None:
    same = torch.tensor([[True, True, True], [True, False, False]])
    assert first_difference(same) == {"first_token": 1, "first_image": 1}
    assert first_difference(same[:1]) == {}


def test_a_step_that_takes_too_long_is_stopped_and_the_next_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    run_steps(dry(tmp_path), [Step("images", 0.3, "this"), STEPS["card"]], 60, said.append)
    assert "images: stopped" in said[1]
    assert "card: done" in said[3]
    assert values(tmp_path, "fault")[0] == "step images: stopped after its 0 s; what it had measured stands."
    assert [one["status"] for one in json.loads((tmp_path / "run.json").read_text())["runs"][0]["steps"]] == ["stopped", "done"]


def test_a_step_that_fails_says_so_in_a_sentence(tmp_path: Path) -> None:
    context = dry(tmp_path)
    run_steps(Context("", tmp_path, "no such", "float32", "cpu", 1, dry=True), [STEPS["card"]], 60, lambda line: None)
    assert values(tmp_path, "fault") == ["step card: KeyError: 'no such'."]
    with pytest.raises(DataError, match="holds results of shape no such, not dry"):
        run_steps(context, [STEPS["card"]], 60, lambda line: None)


def test_a_process_that_dies_costs_its_step_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; print('the last words', flush=True); os._exit(9)"
    monkeypatch.setattr(runner, "command", lambda context: [sys.executable, "-c", code])
    run_steps(dry(tmp_path), [STEPS["card"]], 60, lambda line: None)
    fault = records.read(tmp_path)[-1]
    assert fault["value"] == "step card: its process ended with status 9."
    assert fault["trace"] == "the last words"


def test_nothing_begins_when_the_budget_is_spent(tmp_path: Path) -> None:
    run_steps(dry(tmp_path), [STEPS["card"], STEPS["more"]], 1, lambda line: None)
    assert values(tmp_path, "fault")[1] == "step more: not begun, since the 1 s are over; give `budget` more."


def test_a_card_that_is_none_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import sys; print('device cuda: an old card', file=sys.stderr); sys.exit({runner.REFUSED})"
    monkeypatch.setattr(runner, "command", lambda context: [sys.executable, "-c", code])
    with pytest.raises(ModelError, match="an old card"):
        run_steps(dry(tmp_path), [STEPS["card"]], 60, lambda line: None)


def test_steps_are_asked_for_by_name() -> None:
    assert [step.name for step in steps_of("more, card")] == ["card", "more"]
    assert sum(step.seconds for step in steps_of(None)[:-1]) == 400
    with pytest.raises(DataError, match="`steps` cards: no such step"):
        steps_of("cards")


def test_old_cards_and_small_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headscope.benchmarks.gpu.context.resolve_device", lambda device: device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 2 * 10**9))
    with pytest.raises(ModelError, match=r"Tesla T4 has compute capability 7\.5, not 8\.0 or more"):
        check_card("cuda")
    with pytest.raises(ModelError, match=r"1\.0 GB are free, janus-pro-1b alone takes 2\.5 GB"):
        check_memory("cuda", int(2.5e9), "janus-pro-1b alone")
    check_memory("cuda", 10**8, "this")
    monkeypatch.setattr("headscope.benchmarks.gpu.context.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="Triton: not installed"):
        check_card("cuda")


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("no"), RuntimeError("CUDA error: out of memory\nmore")])
def test_out_of_memory_is_one_sentence(error: Exception) -> None:
    assert faults.sentence(error, "variant full").startswith("variant full: out of memory; use a smaller batch")
    assert faults.sentence(ValueError("a\nb"), "step x") == "step x: ValueError: a."


def test_a_line_that_was_cut_off_is_left_out_and_a_damaged_one_told(tmp_path: Path) -> None:
    records.append(tmp_path, {"what": "a", "value": float("nan")})
    path = tmp_path / records.RESULTS
    with path.open("a") as file:
        file.write('{"what": "b", "val')
    assert records.read(tmp_path) == [{"what": "a", "value": None}]
    path.write_text('{"what\n{"what": "b"}\n')
    with pytest.raises(DataError, match="line 1 is no JSON record"):
        records.read(tmp_path)


def janus_policy(**kept: int) -> Policy:
    """A policy of Janus-Pro-1B without its weights."""
    size = SIZES["janus-pro-1b"]
    shape = ModelShape("janus-pro-1b", size.layers, size.heads, size.kv_heads, size.head_dim, Geometry(24, 24), "a", "b")
    return Policy.uniform(shape, **{"window": 0, "heavy": 0, "stride": 24, "prefix": size.prefix, **kept})


def test_the_floor_of_a_step_is_counted_by_hand() -> None:
    size = SIZES["janus-pro-1b"]
    layers = 24 * (4 * 2048 * 2048 + 3 * 2048 * 5632)
    assert weight_bytes(size, 2) == 2 * (layers + 2048 * 2048 + 2048 * 16384)
    parts = step_parts(size, 256, 2, 0.0)
    assert sum(part.operations for part in parts) == pytest.approx(651e9, rel=2e-3)
    assert Roofline(1e9, 1e12).seconds(Part("a", 2e9, 1e12)) == 2.0
    assert Roofline(1e9, 1e12).seconds(Part("a", 1e9, 3e12)) == 3.0


def test_live_bytes_follow_the_cache() -> None:
    slot = 2 * 24 * 16 * 128 * 2 * 256  # keys and values of 256 rows
    full = live_bytes(janus_policy(window=575), 32, 256, 2)
    assert (full / slot).tolist() == [32 + t + 1 for t in range(576)]
    window = live_bytes(janus_policy(window=10), 32, 256, 2) / slot
    assert window[[0, 10, 11, 575]].tolist() == [33, 43, 43, 43]
    heavy = live_bytes(janus_policy(window=4, heavy=6), 32, 256, 2) / slot
    assert heavy[[0, 23, 24, 47, 48]].tolist() == [33, 56, 43, 66, 43]
    fewer = janus_policy(window=10)
    fewer = live_bytes(fewer.replace(bits=torch.full_like(fewer.bits, 8)), 32, 256, 2) / slot
    assert float(fewer[575]) == 32 + 11 / 2


def test_a_fifth_is_a_fifth_and_fewer_bits_are_fewer_bytes() -> None:
    model = random_janus("tiny", torch.float32, "cpu")
    share = {name: policy.spec().share_of(policy) for name, policy in policies(model).items()}
    assert share["full"] == 1
    assert 0.15 < share["20"] <= 0.2
    assert share["20"] > share["20_at_8"] > share["20_at_4"]
    sizes = {label: batch for _, batch, label in more.largest(model)}
    assert set(sizes) == {"full@24GB", "20@24GB", "full@80GB", "20@80GB"}
    assert sizes["20@80GB"] > sizes["full@80GB"] > sizes["full@24GB"]


def test_a_step_lies_between_the_reports_around_it() -> None:
    each = {count: 2.0 * count for count in range(1, 9)}
    assert _around({**each, 5: 13.0}, 3) == (5.0, 1)  # token 3 is fed between 4 and 5 tokens
    assert _around({4: 8.0, 8: 20.0}, 5) == (3.0, 4)  # reports once a row
    assert _around({2: 1.0, 3: 4.0}, 0) == (3.0, 1)  # none before the first step
    assert _around({2: 1.0}, 5) is None


def test_a_row_of_the_table_is_the_median_of_later_batches() -> None:
    about = {
        "what": "batch of images",
        "shape": "tiny",
        "dtype": "bfloat16",
        "device": "c",
        "batch": 10,
        "decoder": "llama_cuda",
    }
    whole = 2 * 10 * 2 * 2 * 2 * 16 * (2 + 64) * 2  # rows, keys and values, layers, KV heads, numbers, tokens, bytes
    about |= {"cache_bytes": whole // 2, "tokens": 4, "predicted": 0.004}

    def batch(variant: str, ms: float, first: bool, peak: int | None = None) -> dict[str, object]:
        return {**about, "variant": variant, "ms_step": ms, "first": first, "peak_bytes": peak}

    found = [batch("full", 8, True, 3), batch("full", 2, False, 7), batch("full", 4, False), batch("full", 3, False)]
    found += [
        batch("20", 2, True),
        batch("20", 1, False),
        {**batch("generate_static", 6, True), "decoder": "transformers generate_static"},
    ]
    full, fifth, theirs = decode_rows(found)
    assert (full["ms_step"], full["ms_step_first"], full["tokens_s"], full["peak_bytes"]) == (3, 8, 1e4 / 3, 7)
    assert (full["ms_step_predicted"], full["batches"], fifth["ms_step"], theirs["ms_step"]) == (1.0, 4, 1, 6)
    assert (full["share"], theirs["share"]) == (0.5, 1.0)
    assert main_figures(found) == [
        "tiny, batch 10: a fifth of the cache 3.00 times the full one (the cache)",
        "tiny, batch 10: our full cache 2.00 times generate_static (the runtime)",
    ]
