"""What a run takes is said by part, and what can't fit is refused before anything is written."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from headscope.errors import BudgetError
from headscope.models import load_model, stored_numbers
from headscope.models.janus import JanusModel
from headscope.pipeline import needs as module, opened, run, weights
from headscope.pipeline.estimate import estimate
from headscope.pipeline.needs import Needs, counted, fitting_needs, step_bytes, working_bytes
from headscope.pipeline.opened import Asked, asked_for
from headscope.tuning import LimitConfig, PromptConfig, Replay, RunConfig, SearchConfig, batch_bytes, replayed_bytes
from tests.cli.command import headscope
from tests.janus_original import true_network, write_original
from tests.llamagen import Tiny, transformer, write_llamagen

PROMPTS = ("red apple", "dog", "blue car", "red car", "apple", "blue dog")
CONFIG = RunConfig(model="tiny", prompts=PromptConfig(texts=PROMPTS, calibration=3, unseen=3), batch_size=2)
GIB = 2**30


def asked(model: JanusModel, config: RunConfig = CONFIG) -> Asked:
    return asked_for(config, model=model)


def test_parts_are_what_is_allocated(tiny: JanusModel) -> None:
    found = counted(asked(tiny))
    held = [*tiny.network.parameters(), *tiny.network.buffers()]
    assert found.weights == sum({one.data_ptr(): one.numel() * one.element_size() for one in held}.values())
    assert found.rounded == found.weights // 2
    # Streams, layers, keys and values, KV heads, head size, float32; the longest prompt is <s> blue dog <begin_of_image>.
    assert found.image - step_bytes(tiny, 4, 2) == 2 * 2 * 2 * 2 * 8 * 4 * (4 + 16)
    assert (found.batch, found.cache) == (2, 2 * found.image)
    assert found.tables == (3 + 3) * 16 * 16 * 4  # a table of 3 images and a study on 3, of 16 tokens and 16 codes, float32
    assert found.replay == 3 * replayed_bytes(tiny, 4, 2)
    assert found.nbytes == found.libraries + found.weights + found.beside
    assert counted(asked(tiny, CONFIG.replace(search=SearchConfig(quick=True)))).tables == found.tables // 2


def test_a_replay_works_with_as_much_as_is_counted(tiny: JanusModel, recorded, stickers: JanusModel) -> None:
    replay = Replay(stickers, recorded)
    assert replay.fitting_batch() == batch_bytes(stickers.device) // replayed_bytes(stickers, replay.prefix, replay.streams)


def test_tensors_that_live_together_are_counted_once() -> None:
    weight = torch.nn.Parameter(torch.zeros(5000))

    def work() -> torch.Tensor:
        first = torch.zeros(1000) + 1  # 8,000 bytes for a moment
        second = first.view(10, 100).t()  # the same memory
        third = torch.cat([first, second.reshape(-1)])  # 4,000, a copy of 4,000, and 8,000
        del first, second
        gc.collect()
        return third.relu().sum() + weight.view(50, 100)[0].sum()  # 8,000 twice

    nbytes, seconds = working_bytes(work)
    assert 16_000 <= nbytes < 16_100
    assert seconds > 0


def test_the_image_decoders_work_is_at_least_its_largest_layer(tiny: JanusModel) -> None:
    largest = [0]
    handles = [
        part.register_forward_hook(lambda _, __, out: largest.append(out.numel() * out.element_size()))
        for part in tiny.network.model.vqmodel.decoder.modules()
        if not list(part.children())
    ]
    pixels = fitting_needs(asked(tiny)).pixels
    for handle in handles:
        handle.remove()
    assert max(largest) <= pixels <= 20 * max(largest)


def of(**parts: int) -> Needs:
    plain = {"libraries": 7, "weights": 5, "rounded": 2, "image": 10, "tables": 3, "replay": 20, "pixels": 30}
    return Needs(name="m", batch=8, **{name: nbytes * GIB for name, nbytes in {**plain, **parts}.items()})


def test_what_takes_turns_counts_once() -> None:
    assert of().beside == (2 + 3 + 80) * GIB
    assert of().nbytes == (7 + 5 + 85) * GIB
    assert of(pixels=100).beside == (2 + 3 + 100) * GIB
    assert of().sentence() == (
        "memory: weights 5.00 GiB, their copy in bfloat16 2.00 GiB, tables of the replay 3.00 GiB; in turns full cache of 8 "
        "images 80.0 GiB, image decoder 30.0 GiB, work of the replay 20.0 GiB."
    )


def test_the_largest_batch_that_fits_is_named() -> None:
    assert of().check(85 * GIB) == of()
    with pytest.raises(BudgetError, match=r"takes 85\.0 GiB beside its weights .* 84\.0 GiB are free: at most 7 of 8 images"):
        of().check(84 * GIB)
    assert replace(of(), batch=7).check(84 * GIB)
    for parts in ({"pixels": 90}, {"replay": 90}, {"tables": 90}):
        with pytest.raises(BudgetError, match=r"with one image at a time .* no batch fits, so ask for fewer prompts"):
            of(**parts).check(84 * GIB)


def test_a_run_that_does_not_fit_is_refused_and_writes_nothing(
    tiny_folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(
        model=str(tiny_folder),
        limit=LimitConfig(keep="50%"),
        prompts=PromptConfig(texts=PROMPTS, calibration=3, unseen=3),
        search=SearchConfig(quick=True),
    )
    # As of models whose caches are larger than what takes turns with them.
    monkeypatch.setattr(module, "replayed_bytes", lambda *_: 0)
    monkeypatch.setattr(module, "working_bytes", lambda _: (0, 0.0))
    needs = fitting_needs(asked_for(config))
    monkeypatch.setattr(module, "free_memory", lambda _: needs.beside - 1)
    with pytest.raises(BudgetError, match="at most 2 of 3 images fit together, set `batch_size` to 2"):
        run(config, tmp_path / "run")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    numbers = ("--prompts", tmp_path / "prompts.txt", "--calibration", 3, "--unseen", 3, "--quick", "--keep", "50%")
    ended = headscope(capsys, monkeypatch, "run", tiny_folder, *numbers, "--out", tmp_path / "run")
    assert (ended.status, ended.err.count("error: "), "set --batch-size to 2." in ended.err) == (2, 1, True)
    assert not (tmp_path / "run").exists()
    assert fitting_needs(asked_for(config.replace(batch_size=2))).batch == 2


def test_an_estimate_says_minutes_and_memory(tiny: JanusModel) -> None:
    whole = asked(tiny)
    needs = replace(counted(whole), pixel_seconds=30.0)
    found = estimate(whole, needs)
    assert set(found.seconds) == {"trace", "heads", "search", "compare", "generate", "report"}
    assert found.seconds["generate"] >= 2 * 3 * 30.0
    assert found.minutes == pytest.approx(sum(found.seconds.values()) / 60)
    assert found.needs == needs


def test_weights_are_counted_before_they_are_loaded(tiny: JanusModel, tiny_folder: Path, tmp_path: Path) -> None:
    saved = sum(tensor.numel() for file in tiny_folder.glob("*.safetensors") for tensor in load_file(file).values())
    assert stored_numbers(str(tiny_folder)) == saved
    assert stored_numbers("stickers") is None
    original = write_original(tmp_path / "original", true_network(), parts=2)
    loaded: Any = load_model(str(original), "cpu")
    assert stored_numbers(str(original)) == sum(parameter.numel() for parameter in loaded.network.parameters())
    size = Tiny()
    folder = write_llamagen(tmp_path / "llamagen", size, transformer(size), "classes.pt")
    classes: Any = load_model(str(folder), "cpu")
    parts = (*classes.network.parameters(), *classes.pixels.parameters())
    assert stored_numbers(str(folder)) == sum(part.numel() for part in parts)


def test_weights_that_do_not_fit_are_not_loaded(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = stored_numbers(str(tiny_folder))
    assert numbers is not None
    monkeypatch.setattr(opened, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    config = CONFIG.replace(model=str(tiny_folder))
    monkeypatch.setattr(weights, "free_bytes", lambda: 4 * numbers - 1)
    with pytest.raises(BudgetError, match=r"its weights take .* KiB in float32, .* are free: set `dtype` to bfloat16 \("):
        run(config, tmp_path / "run", device="cpu")
    monkeypatch.setattr(weights, "free_bytes", lambda: 2 * numbers - 1)
    for dtype in (None, "bfloat16"):
        with pytest.raises(BudgetError, match="are free: use a device with more"):
            run(config.replace(dtype=dtype), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(weights, "free_bytes", lambda: 4 * numbers)
    weights.check_weights(str(tiny_folder), "cpu")
