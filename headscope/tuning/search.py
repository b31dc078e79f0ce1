"""The search as one call: table, presets, solver, study; into one folder that continues after a stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headscope.errors import BudgetError, DataError
from headscope.models import ImageModel
from headscope.policy import CONTROLS, Limit, Policy, save_policy
from headscope.progress import Progress, renamed
from headscope.samples import Samples
from headscope.tuning.config import SearchConfig
from headscope.tuning.measure.coverage import Groups
from headscope.tuning.measure.free_running import measure_free_running
from headscope.tuning.measure.measurement import MemoizedReplay, PolicyEvaluator
from headscope.tuning.measure.options import losses_from
from headscope.tuning.measure.replay import Replay
from headscope.tuning.measure.sensitivity import table_identity
from headscope.tuning.measure.table import HEADS, Table, sensitivity_table
from headscope.tuning.measure.usual import UsualAttention
from headscope.tuning.measure.usual_measured import usual_attention
from headscope.tuning.propose.kvtuner import NAME as KVTUNER, kvtuner
from headscope.tuning.propose.presets import Sweep, sweep_presets
from headscope.tuning.study.outcome import SearchResult
from headscope.tuning.study.phases import PhasedStudy
from headscope.tuning.study.storage import StudyStore, check_sampler, shared, shown

# Images that a study replays together on a CPU, so that a bad policy is given up after the first of them. A GPU takes about as
# long for as many as fit.
AT_ONCE = 8


def study_replay(model: ImageModel, samples: Samples, usual: UsualAttention | None = None) -> Replay:
    """The calibration images of a study, in batches small enough that giving a policy up saves something.

    Args:
        model: the model.
        samples: the images.
        usual: see `Replay`.
    """
    fitting = Replay(model, samples.first(1), by_stream=False).fitting_batch()
    most = fitting if model.device.type == "cuda" else min(AT_ONCE, fitting)
    return Replay(model, samples, batch_size=most, by_stream=False, usual=usual)


@dataclass(frozen=True)
class SearchFiles:
    """Where a search keeps its files.

    Attributes:
        folder: presets.parquet, presets/, trials.parquet, search.json and what has no place of its own.
        table: the sensitivity table, which belongs to no limit; by default sensitivity.parquet in `folder`.
        storage: the study, see `open_storage`; by default study.db in `folder`.
    """

    folder: Path
    table: Path | None = None
    storage: str | Path | None = None


@dataclass
class Search:
    """A search, for one process that leads it and others that join.

    Attributes:
        model: the model.
        samples: the calibration images; report figures of others.
        semantic_score: float32 [layers, kv_heads] of `classify`.
        limit: the byte limit.
        config: every knob.
        files: where things are kept.
        groups: of heads, for a table that is not of every head; see `sensitivity_table`.
        progress: told what is being done.

    Raises:
        DataError: scores of another model, or a sampler that the storage can't take.
    """

    model: ImageModel
    samples: Samples
    semantic_score: torch.Tensor
    limit: Limit
    config: SearchConfig
    files: SearchFiles
    groups: Groups | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        shape, storage = self.model.shape, self.files.storage
        self.semantic_score = torch.as_tensor(self.semantic_score)
        if not isinstance(self.limit, Limit):
            raise DataError(f"limit {self.limit!r:.60}: expected a Limit; make one with Limit.parse({self.limit!r:.60}, spec).")
        longest = self.model.tokenize(self.samples.prompts).ids.shape[1]
        if longest > self.limit.spec.prefix:
            raise DataError(
                f"The limit is counted for prompts of {self.limit.spec.prefix} tokens, the calibration prompts have up to "
                f"{longest}: count it for those, CacheSpec.of(model, prefix={longest})."
            )
        if tuple(self.semantic_score.shape) != (shape.layers, shape.kv_heads):
            raise DataError(
                f"The head classes are for {tuple(self.semantic_score.shape)} layers and KV heads, {self.model.name} has "
                f"{(shape.layers, shape.kv_heads)}: classify a trace of this model."
            )
        self._check_bits()
        check_sampler(self.config.sampler, shown(storage), alone=not shared(storage))

    def _check_bits(self) -> None:
        """Refuse a limit that only fewer bits reach, and say which."""
        spec, bits, whole = self.limit.spec, self.config.each_bits, self.config.each_prompt == (1,)
        if (needed := spec.smallest_of(bits, whole)) > self.limit.bytes:
            fewer = next((each for each in (8, 4) if spec.smallest_of((each,), whole) <= self.limit.bytes), None)
            advice = "expected a larger limit" if fewer is None else f"one of {fewer} bits fits, add {fewer} to bits"
            raise BudgetError(
                f"bits {self.config.bits}: the smallest cache of such heads takes {needed:,} bytes, the limit is "
                f"{self.limit.bytes:,}; {advice}."
            )

    def lead(self, ready: Callable[[], None] | None = None) -> SearchResult:
        """Search, and write what was found.

        Args:
            ready: called once the incumbents are measured: the moment for other processes to join.

        Raises:
            BudgetError: nothing fits.
            DataError: the folder belongs to another model, limit or calibration set.
        """
        result, presets = self._searched(ready)
        folder = self.files.folder / "presets"
        for file in set(folder.glob("*.safetensors")) - {folder / f"{name}.safetensors" for name in presets.best}:
            file.unlink()  # of a search with other bits
        for name, policy in presets.best.items():
            save_policy(policy, folder / f"{name}.safetensors")
        result.save(self.files.folder)
        return result

    def join(self) -> None:
        """Propose for a search that another process leads, until it has its trials; its files are left alone.

        Raises:
            As `lead`.
        """
        self._searched(None)

    def _searched(self, ready: Callable[[], None] | None) -> tuple[SearchResult, Sweep]:
        usual = self._usual()
        table = None if self.config.quick else self._table(usual)
        replay = study_replay(self.model, self.samples.first(self.config.images), usual)
        remembered = MemoizedReplay(replay)  # the study begins with presets that the sweep has just measured
        presets = self._presets(remembered)
        shape, losses = self.model.shape, None
        if table is not None:
            losses = losses_from(table.losses, shape.layers, shape.kv_heads, shape.geometry)
            with suppress(BudgetError):  # all tokens fit large limits alone
                presets.best[KVTUNER] = kvtuner(losses, self.limit)
        study = PhasedStudy(
            remembered,
            self._room(usual),
            losses,
            self.semantic_score,
            self.config,
            self._store(replay, table),
            {name: policy for name, policy in presets.best.items() if name not in CONTROLS},
            self.progress,
            None if self.config.quick else lambda policy: self._free(replay.completed(policy)),
        )
        result = study.run(ready)
        result.policy = replay.completed(result.policy).replace(limit=self.limit)
        result.presets = presets.best
        if table is not None:
            result.settings["sensitivity"] = table.facts() | {"sentence": table.sentence()}
        return result, presets

    def _free(self, policy: Policy) -> float:
        """What a policy loses on images that it makes itself, of the prompts that trials are measured on."""
        return measure_free_running(self.model, self.samples.first(self.config.images), policy).kl

    def _usual(self) -> UsualAttention | None:
        """What tokens usually receive on the calibration images; None where no head may compare with it, or has room for it."""
        if not self.config.compares:
            return None
        path = self.files.table or self.files.folder / "sensitivity.parquet"
        progress = renamed(self.progress, "what tokens usually receive")
        found = usual_attention(self.model, self.samples, path.with_name("usual.safetensors"), progress)
        smallest = self.limit.spec.smallest_of(self.config.each_bits, self.config.each_prompt == (1,))
        return found if self._room(found).bytes >= smallest else None

    def _room(self, usual: UsualAttention | None) -> Limit:
        """The limit that caches keep to: a size holds the tables of scores too, of which every head may come to need one."""
        if usual is None or self.limit.share is not None:
            return self.limit
        shape = self.model.shape
        return replace(self.limit, bytes=self.limit.bytes - usual.table_bytes(shape.layers * shape.kv_heads))

    def _table(self, usual: UsualAttention | None) -> Table:
        few = self.samples.first(self.config.table_images)
        return sensitivity_table(
            Replay(self.model, few, by_stream=False, usual=usual),
            self.config.table,
            self.groups,
            self.files.table or self.files.folder / "sensitivity.parquet",
            renamed(self.progress, "sensitivity of heads"),
            self.config.each_bits,
            self.config.options,
            self.config.each_prompt,
        )

    def _presets(self, replay: PolicyEvaluator) -> Sweep:
        return sweep_presets(
            replay,
            self.limit,
            self.semantic_score,
            quick=self.config.quick,
            bits=self.config.each_bits,
            path=self.files.folder / "presets.json",
            progress=self.progress,
        )

    def _store(self, replay: Replay, table: Table | None) -> StudyStore:
        """The study's storage; a study of another table or of other images is another one."""
        images, seed = self.config.table_images, self.config.seed
        kind = "" if table is None or table.kind == HEADS else table.kind
        heads = f"{self.config.bits} bits, prompt {self.config.prompt}, score {self.config.score}"
        name = f"{self.model.shape.name}, {self.limit.bytes} bytes, {len(replay)} images, seed {seed}, {heads}"
        identity = {
            "calibration": table_identity(replay, 1)["images"],
            "table": 0 if table is None else f"{kind} of {images}" if kind else images,
            "options": self.config.options,
        }
        kept = self.files.storage or self.files.folder / "study.db"
        return StudyStore.open(kept, f"{name}{f', table of {kind}' if kind else ''}: ", identity)


def search(
    model: ImageModel,
    samples: Samples,
    semantic_score: torch.Tensor,
    limit: Limit,
    out: str | Path | SearchFiles,
    config: SearchConfig | Mapping[str, Any] | None = None,
    *,
    groups: Groups | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Search the policy that loses least on `samples` under `limit`.

    Args:
        model: the model.
        samples: the calibration images.
        semantic_score: float32 [layers, kv_heads] in [0, 1], of `classify`.
        limit: the byte limit, of `Limit.parse`.
        out: folder of the search's files, or where each is kept. The same call again continues there; other limits, seeds
            and numbers of images have studies of their own.
        config: every knob, see `SearchConfig`; or some of them by name.
        groups: needed for a sensitivity table that is not of every head (large models), see `sensitivity_table`.
        progress: told what is being done, see `headscope.progress`.

    Returns:
        The policy found, never worse than the best preset on these images, and all that was measured.

    Raises:
        BudgetError: nothing fits.
        DataError: the folder belongs to another model, limit or calibration set.
    """
    files = out if isinstance(out, SearchFiles) else SearchFiles(Path(out))
    knobs = config if isinstance(config, SearchConfig) else SearchConfig(**(config or {}))
    return Search(model, samples, semantic_score, limit, knobs, files, groups, progress).lead()
