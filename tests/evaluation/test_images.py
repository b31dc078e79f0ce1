"""What became of images: likeness, distances, folders for other scorers, and scores that come back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headscope.errors import DataError
from headscope.evaluation import features
from headscope.evaluation.distances import distances
from headscope.evaluation.features import FeatureNetwork
from headscope.evaluation.imported import read_results
from headscope.evaluation.layouts import check_layout, write_dpg, write_geneval
from headscope.evaluation.likeness import likeness, token_agreement
from headscope.prompt_files import Asked, read_asked


def noise(count: int, seed: int, side: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


def test_psnr_is_what_its_formula_says() -> None:
    one, other = noise(3, 0), noise(3, 1)
    other[2] = one[2]
    found = likeness(one, other)["psnr"]
    for n in range(2):
        error = np.mean((one[n].numpy().astype(float) - other[n].numpy().astype(float)) ** 2)
        assert float(found[n]) == pytest.approx(10 * math.log10(255**2 / error), rel=1e-4)
    assert math.isinf(float(found[2]))


def test_ssim_is_one_for_equal_images_and_falls_with_noise() -> None:
    one = noise(4, 0)
    worse = [(one.int() + (k * 20 * torch.randn(one.shape, generator=torch.Generator().manual_seed(k))).int()).clamp(0, 255)
             for k in range(4)]  # fmt: skip
    found = [likeness(other.to(torch.uint8), one)["ssim"].mean() for other in worse]
    assert float(found[0]) == pytest.approx(1.0)
    assert found[0] > found[1] > found[2] > found[3]


def test_token_agreement_counts_row_by_row() -> None:
    one = torch.arange(12).view(1, 12)
    other = one.clone()
    other[0, [4, 8, 9]] = -1
    assert token_agreement(one, other, 4).tolist() == [[1.0, 0.75, 0.5]]


def test_features_tell_images_apart_and_do_not_hang_on_the_batch() -> None:
    network = FeatureNetwork()
    images = torch.cat([noise(2, 0), torch.zeros(1, 48, 48, 3, dtype=torch.uint8)])
    found = network(images)
    assert found.shape == (3, 1280)
    torch.testing.assert_close(found, network(images, batch_size=1), rtol=1e-3, atol=1e-4)
    assert float((found[0] - found[2]).norm()) > 3 * float((found[0] - found[1]).norm())


def test_kernel_distance_is_the_unbiased_mmd_and_frechet_that_of_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(40, 1280, generator=generator) + shift for shift in (0.0, 0.3))
    found = distances(one, other)
    x, y = one.double().numpy(), other.double().numpy()

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / 1280 + 1) ** 3

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    slow = (xx.sum() - np.trace(xx)) / (40 * 39) + (yy.sum() - np.trace(yy)) / (40 * 39) - 2 * xy.mean()
    assert found.kernel == pytest.approx(slow, rel=1e-2)
    assert found.frechet > 0.09 * 1280  # the means alone are so far apart
    assert abs(distances(one, one).kernel) < 5e-2 * found.kernel
    assert distances(one, other) == found  # the seed decides
    with pytest.raises(DataError, match="at least two of each"):
        distances(one[:1], other)


def test_a_missing_extra_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "find_spec", lambda name: None if name == "torchmetrics" else object())
    with pytest.raises(DataError, match=r'needs torchmetrics; install the extra with pip install "headscope\[eval\]"'):
        FeatureNetwork()


def test_geneval_s_folders_hold_what_its_scorer_reads(tmp_path: Path) -> None:
    line = {"tag": "counting", "include": [{"class": "cow", "count": 2}], "prompt": "a photo of two cows"}
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a dog"}) + "\n\n" + json.dumps(line, separators=(",", ":")) + "\n")
    asked = read_asked(tmp_path / "p.jsonl")
    images = list(noise(3, 0).numpy())
    write_geneval(tmp_path / "full", 1, asked[1], images)
    place = tmp_path / "full" / "00001"
    assert (place / "metadata.jsonl").read_text() == json.dumps(line, separators=(",", ":")) + "\n"  # as the file has it
    files = sorted((place / "samples").iterdir())
    assert [file.name for file in files] == ["0000.png", "0001.png", "0002.png"]
    assert (np.asarray(Image.open(files[2])) == images[2]).all()


def test_dpg_s_grids_are_named_after_the_prompt_files(tmp_path: Path) -> None:
    for name in ("10", "2", "partiprompts1"):
        (tmp_path / f"{name}.txt").write_text(f"prompt {name}\n")
    asked = read_asked(tmp_path)
    assert [one.name for one in asked] == ["2", "10", "partiprompts1"]
    images = list(noise(4, 0).numpy())
    write_dpg(tmp_path / "out", asked[0], images)
    grid = np.asarray(Image.open(tmp_path / "out" / "2.png"))
    assert grid.shape == (96, 96, 3)
    for number, (row, column) in enumerate([(0, 0), (0, 48), (48, 0), (48, 48)]):
        assert (grid[row : row + 48, column : column + 48] == images[number]).all()
    with pytest.raises(DataError, match="takes four images a prompt, found 3"):
        write_dpg(tmp_path / "out", Asked("x", "x", {}), images[:3])


def test_a_layout_wants_prompts_that_its_scorer_can_use() -> None:
    plain = Asked("a dog", "00000", {"prompt": "a dog"})
    check_layout(None, [plain], 1)
    check_layout("geneval", [Asked("a dog", "0", {"tag": "single_object", "include": [], "prompt": "a dog"})], 1)
    check_layout("dpg", [Asked("a dog", "partiprompts1", {})], 4)
    with pytest.raises(DataError, match=r"layout geneval: prompt 1 \('a dog'\) has no \"tag\" and \"include\""):
        check_layout("geneval", [plain], 4)
    with pytest.raises(DataError, match="knows a prompt by the name of its file; give a folder"):
        check_layout("dpg", [plain], 4)


def test_results_of_geneval_s_scorer_come_back_by_variant_and_tag(tmp_path: Path) -> None:
    lines = [
        {"filename": f"e/{name}/{n:05d}/samples/0000.png", "tag": tag, "correct": right}
        for name, rights in (("full", [True, True, False]), ("h2o", [True, False, False]))
        for n, (tag, right) in enumerate(zip(["counting", "counting", "colors"], rights, strict=True))
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    found = read_results(tmp_path / "r.jsonl", ["full", "h2o"]).set_index(["variant", "category"])
    assert found.loc[("full", "counting"), "score"] == 1.0
    assert found.loc[("h2o", "counting"), "score"] == 0.5
    assert found.loc[("h2o", "overall"), "score"] == 0.25  # the mean of the tags, as GenEval counts
    assert found.loc[("full", "overall"), "images"] == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"variant": "ssd", "category": "dpg", "score": 84.2}', "variant ssd; this evaluation has full, h2o"),
        ('{"variant": "full", "category": "dpg", "score": "good"}', "score 'good'; expected a number"),
        ('{"filename": "x/ssd/0.png", "tag": "a", "correct": true}', "lies in none of the folders full, h2o"),
        ('{"filename": "x/full/0.png", "tag": "a", "correct": "false"}', "correct 'false'; expected true or false"),
        ('{"variant": "full", "category": "dpg", "score": NaN}', "score nan; expected a number"),
        ('{"variant": "full", "category": null, "score": 1}', "category None; expected a name"),
        ('{"variant": "full", "category": "a\\udce9", "score": 1}', "category .*; expected a name"),
        ('{"variant": ["full"], "category": "dpg", "score": 1}', "variant .*; this evaluation has full, h2o"),
        ('{"variant": "full", "variant": "h2o", "category": "dpg", "score": 1}', "'variant' twice"),
        ('\n\n{"variant": "full"', "line 3 is not JSON"),
        ("[" * 100_000, "line 1 cannot be read"),
        ('{"variant": "full", "category": "dpg", "score": 1}\n' * 2, "line 2: full has a score of dpg already"),
        ('{"variant": "full", "category": "dpg", "score": 1' + "0" * 400 + "}", "score 10+; expected a number"),
        ('{"filename": "full/00000/samples/0000.png", "tag": null, "correct": true}', "tag None; expected a category"),
        (
            '{"filename": "full/00000/samples/0000.png", "tag": "a", "correct": true}\n' * 2,
            "line 2: .* in line 1 already",
        ),
        ('{"filename": "full/00002/samples/0000.png", "tag": "a", "correct": true}', "is none of 2 prompts x 1 images"),
        ('{"filename": "full/00000/samples/0001.png", "tag": "a", "correct": true}', "is none of 2 prompts x 1 images"),
        (
            '{"variant": "full", "category": "overall", "score": 1}\n'
            '{"filename": "full/00000/samples/0000.png", "tag": "a", "correct": true}',
            "full has a score of overall and images that make one too; leave one out",
        ),
        ('{"a": 1}', "of no known shape"),
        ("[", r"line 1 is not JSON \(Expecting value, column 2\); expected"),
    ],
)
def test_results_that_cannot_be_placed_are_refused(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "r.jsonl").write_text(line)
    with pytest.raises(DataError, match=said):
        read_results(tmp_path / "r.jsonl", ["full", "h2o"], prompts=2, seeds=1)


def test_results_put_together_on_another_system_are_read(tmp_path: Path) -> None:
    lines = [
        json.dumps({"variant": name, "category": "a\u2028b", "score": 0.5}, ensure_ascii=False) for name in ("full", "h2o")
    ]
    (tmp_path / "r.jsonl").write_bytes("\r\n".join(f"\ufeff{line}" for line in lines).encode())
    found = read_results(tmp_path / "r.jsonl", ["full", "h2o"])
    assert found[["variant", "category"]].to_numpy().tolist() == [["full", "a\u2028b"], ["h2o", "a\u2028b"]]


def test_the_innermost_folder_names_the_variant(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"filename": "runs/full/h2o/00000/samples/0000.png", "tag": "a", "correct": true}')
    assert set(read_results(tmp_path / "r.jsonl", ["full", "h2o"])["variant"]) == {"h2o"}
