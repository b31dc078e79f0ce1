"""The steps of a run, each from the files of the one before, each one call."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from headscope.errors import DataError
from headscope.heads import HeadClassifier, Heads, classify
from headscope.models.protocol import ImageModel
from headscope.models.registry import lasting_name
from headscope.models.tokens import warn_of_unknown_words
from headscope.pipeline.memory import peak_bytes
from headscope.pipeline.pictures import save_png
from headscope.pipeline.settings import Crew, Place, Progress, Settings
from headscope.pipeline.tables import groups_of
from headscope.policy.files import load_policy, save_policy
from headscope.policy.footprint import CacheSpec, Limit
from headscope.policy.policy import Policy
from headscope.policy.presets import make_preset
from headscope.provenance import machine
from headscope.reporting import contact_sheet
from headscope.run_folder import RunFolder
from headscope.runtime import Sampling, generate
from headscope.samples import Samples
from headscope.storage import write_json, write_whole
from headscope.tracing import Selection, TraceDataset, trace
from headscope.tuning import Needs, Replay, Tuned, equal_options, measure_sensitivity, needs, tune
from headscope.tuning.compare import COLUMNS, MethodTable, compare_methods


def limit_of(model: ImageModel, settings: Settings, prefix: int) -> Limit:
    """The byte limit in force.

    Raises:
        BudgetError: below the smallest possible, or above the full cache.
    """
    spec = counted_for(model, settings, prefix)
    return Limit.of_share(settings.keep or "20%", spec) if settings.memory is None else Limit.of_memory(settings.memory, spec)


def counted_for(model: ImageModel, settings: Settings, prefix: int) -> CacheSpec:
    """What the byte limit counts; the dtype and the streams that the model runs with here, unless the settings say others."""
    guided = settings.limit_guidance
    return CacheSpec(
        model.shape,
        prefix,
        batch=settings.batch,
        streams=streams_of(model, settings) if guided is None else 1 + guided,
        dtype=settings.limit_dtype or str(model.dtype),
        count_prefix=settings.of == "all",
    )


def streams_of(model: ImageModel, settings: Settings) -> int:
    """Rows of the batch that one picture takes: two under guidance."""
    return 1 if (model.guidance if settings.guidance is None else settings.guidance) == 1.0 else 2


def trace_step(
    model: ImageModel,
    folder: RunFolder,
    prompts: list[str],
    settings: Settings,
    progress: Progress | None = None,
    *,
    selection: Selection | None = None,
    live: bool = False,
    policy: Policy | None = None,
) -> TraceDataset:
    """Draw the calibration pictures and trace them: calibration.parquet, trace/.

    Args:
        selection: what to trace, everything of the default set unless given.
        live: trace while drawing. policy: draw and trace through its compressed cache, which only live tracing can see.
    """
    with timed(folder, "trace"):
        samples = calibration_pictures(model, folder, prompts, settings, progress, policy)
        return trace(
            model,
            samples,
            folder.trace,
            selection=selection,
            progress=_as_counts(progress, "tracing"),
            resume=folder.trace.exists(),
            beside=True,  # what --overwrite has left there
            play=partial(_draw_again, model, policy) if live or policy is not None else None,
            cache=_cache_name(policy, live),
        )


def calibration_pictures(
    model: ImageModel,
    folder: RunFolder,
    prompts: list[str],
    settings: Settings,
    progress: Progress | None = None,
    policy: Policy | None = None,
) -> Samples:
    """The pictures to trace and search on: calibration.parquet."""
    return _drawn(model, folder.samples, prompts, settings, settings.seed, "calibration", progress, policy)


def _draw_again(model: ImageModel, policy: Policy | None, samples: Samples) -> None:
    """Draw recorded pictures once more, for a live trace; the same seeds give the same tokens."""
    generate(
        model,
        samples.prompts,
        samples.seeds.tolist(),
        policy=policy,
        sampling=Sampling(samples.guidance, samples.temperature, samples.top_k),
        batch_size=len(samples),
    )


def _cache_name(policy: Policy | None, live: bool) -> str:
    """What stands in a trace for the cache it looked through: traces of two caches, or of two policies, do not mix."""
    if policy is None:
        return "full, live" if live else "full"
    tensors = (policy.window, policy.heavy, policy.anchor, policy.decay, policy.per_visit)
    numbers = hashlib.sha256(repr([policy.stride, *(t.tolist() for t in tensors)]).encode()).hexdigest()
    return f"{policy.provenance.get('method', 'policy')} {numbers[:12]}"


def heads_step(folder: RunFolder, model: ImageModel, settings: Settings, classifier: HeadClassifier | None = None) -> Heads:
    """Classify the heads of the trace: heads.safetensors."""
    with timed(folder, "heads"):
        judge = classifier or HeadClassifier(settings.seed)
        heads = classify(
            TraceDataset(folder.trace),
            model.shape,
            seed=judge.random_state,
            method=judge.method,
            clusters=judge.n_clusters,
            threshold=judge.threshold,
        )
        heads.save(folder.heads)
        return heads


def search_step(
    model: ImageModel,
    folder: RunFolder,
    settings: Settings,
    progress: Progress | None = None,
    *,
    place: Place | None = None,
    crew: Crew | None = None,
    ready: Callable[[], None] | None = None,
) -> Policy:
    """Search a policy under the limit: search/, policy.safetensors, or what `place` names.

    Args:
        crew: where the study is kept. ready: called before the first proposal; see `headscope.tuning.search`.

    Raises:
        DataError: the trace or heads step has not run. BudgetError: see `limit_of`.
    """
    Samples.load(folder.samples), Heads.load(folder.heads)  # what is missing is said before limits are checked
    prefix = int(folder.read()["prefix"])
    limit = limit_of(model, settings, prefix)
    if place is None:
        folder.note(limit=_limit_facts(limit, settings))
    here = place or Place(folder.search, folder.policy)
    with timed(folder, "search"):
        tuned = tuned_under(model, folder, settings, here, limit, crew or Crew(), ready=ready, progress=progress)
        save_policy(tuned.policy, here.policy)
        return tuned.policy


def tuned_under(
    model: ImageModel,
    folder: RunFolder,
    settings: Settings,
    place: Place,
    limit: Limit,
    crew: Crew,
    *,
    joins: bool = False,
    ready: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """`tune` on a run's calibration pictures and head classes; writes nothing but the search's own files.

    Args:
        joins: another process leads this search.
    """
    samples = Samples.load(folder.samples)
    return tune(
        model,
        samples.select(range(min(settings.searched_pictures, len(samples)))),
        Heads.load(folder.heads).scores(),
        limit,
        place.search,
        trials=settings.trials,
        table_pictures=settings.table_pictures,
        strides=settings.strides,
        buckets=settings.buckets,
        sampler=settings.sampler,
        prune=settings.prune,
        patience=settings.patience,
        seed=settings.seed,
        quick=settings.quick,
        table=folder.table(settings.table_pictures),
        kind=settings.table,
        groups=None if settings.quick else groups_of(model, folder, settings.table),
        storage=crew.storage,
        ready=ready,
        joins=joins,
        progress=progress,
    )


def sensitivity_step(
    model: ImageModel,
    folder: RunFolder,
    keeps: Sequence[str],
    *,
    pictures: int = 8,
    stride: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Needs]:
    """Give each head alone a window, heavy tokens or both at equal bytes: sensitivity.parquet, needs.csv.

    Args:
        keeps: shares such as "20%". pictures: of the calibration pictures to replay. stride: of heavy heads, in tokens.
    Raises:
        DataError: the trace or heads step has not run. BudgetError: a share that holds no heavy token.
    """
    samples = Samples.load(folder.samples)
    heads = Heads.load(folder.heads)
    prefix = int(folder.read()["prefix"])
    spec = CacheSpec(model.shape, prefix, streams=1, dtype=str(model.dtype))
    asked = {keep: equal_options(keep, spec, stride) for keep in keeps}
    with timed(folder, "sensitivity"):
        losses = measure_sensitivity(
            Replay(model, samples.select(range(min(pictures, len(samples)))), by_stream=False),
            list(dict.fromkeys(option for options in asked.values() for option in options.values())),
            folder.sensitivity,
            stride=stride,
            progress=_as_counts(progress, "each head alone"),
        )
        found = [needs(losses, heads.table, options, keep, seed) for keep, options in asked.items()]
    table = pd.concat([one.table.assign(keep=one.keep) for one in found], ignore_index=True)
    write_whole(folder.needs, lambda path: table.to_csv(path, index=False, float_format="%.6g"))
    said = {one.keep: {"correlation": one.correlation, "low": one.low, "high": one.high} for one in found}
    folder.note(needs={"stride": stride, "pictures": pictures, **said})
    return found


def unseen_pictures(
    model: ImageModel, folder: RunFolder, prompts: list[str], settings: Settings, progress: Progress | None = None
) -> Samples:
    """Pictures of prompts that no search sees, drawn with the full cache: unseen.parquet."""
    seed = int(folder.read().get("seed", settings.seed)) + 10_000  # other random numbers than the calibration pictures
    return _drawn(model, folder.unseen, prompts, settings, seed, "unseen", progress)


def compare_step(
    model: ImageModel,
    folder: RunFolder,
    prompts: list[str],
    settings: Settings,
    progress: Progress | None = None,
    *,
    place: Place | None = None,
) -> MethodTable:
    """Measure the searched policy and the presets on unseen prompts: unseen.parquet, methods.csv, kl_by_row.parquet, the
    last two in the search's folder where `place` names one."""
    here = place or Place(folder.search, folder.policy)
    with timed(folder, "compare"):
        samples = unseen_pictures(model, folder, prompts, settings, progress)
        searched = load_policy(here.policy, model.shape)
        full = Limit.of_share("100%", counted_for(model, settings, searched.prefix))
        policies = {"full": make_preset("full", full), "searched": searched}
        for path in sorted((here.search / "presets").glob("*.safetensors")):
            policies[path.stem] = load_policy(path, model.shape)
        replay = Replay(model, samples, by_stream=False)
        table = compare_methods(
            replay,
            policies,
            settings.memory or settings.keep or "",
            count_prefix=settings.of == "all",
            seed=settings.seed,
            progress=_as_counts(progress, "methods on unseen prompts"),
        )
        into = folder.path if place is None else here.search
        write_whole(into / "methods.csv", lambda path: table.methods.to_csv(path, index=False))
        write_whole(into / "kl_by_row.parquet", lambda path: table.by_row.to_parquet(path, index=False))
        row = table.methods.set_index("method").loc["searched"]
        results = {name: float(row[name]) for name in COLUMNS if name not in ("method", "budget")}
        save_policy(searched.replace(results={**searched.results, "unseen": results}), here.policy)
        return table


def generate_step(model: ImageModel, folder: RunFolder, settings: Settings, progress: Progress | None = None) -> pd.DataFrame:
    """Draw the unseen prompts with the policy too: pictures/full, pictures/searched, sheet.png, pictures.parquet."""
    full = Samples.load(folder.unseen)
    with timed(folder, "generate"):
        policy = load_policy(folder.policy, model.shape)
        searched = generate(
            model,
            full.prompts,
            full.seeds.tolist(),
            policy=policy,
            sampling=Sampling(full.guidance, full.temperature, full.top_k),
            batch_size=settings.batch_size,
            progress=_as_counts(progress, "drawing with the policy"),
        )
        return write_pictures(model, full, searched, folder.pictures)


def write_pictures(model: ImageModel, full: Samples, searched: Samples, out: Path) -> pd.DataFrame:
    """PNG files of both, a contact sheet side by side, and a table of how many tokens agree."""
    images = {"full": model.to_images(full.tokens), "searched": model.to_images(searched.tokens)}
    for name, pictures in images.items():
        for number, picture in enumerate(pictures):
            save_png(picture, out / name / f"{number:03d}.png")
    agreement = (full.tokens == searched.tokens).float().mean(1)
    rows = [(prompt, [images["full"][i].numpy(), images["searched"][i].numpy()]) for i, prompt in enumerate(full.prompts)]
    contact_sheet(rows, ["full cache", "policy"], out / "sheet.png")
    table = pd.DataFrame(
        {
            "index": range(len(full)),
            "prompt": full.prompts,
            "seed": full.seeds.tolist(),
            "token_agreement": agreement.tolist(),
        }
    )
    write_whole(out / "pictures.parquet", lambda path: table.to_parquet(path, index=False))
    return table


def begin(
    model: ImageModel,
    source: str,
    folder: RunFolder,
    parts: tuple[list[str], list[str]],
    settings: Settings,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Open the run folder: run.json, prompts.json; refuses prompts and limits that can't work before anything is drawn."""
    calibration, unseen = parts
    prefix = model.encode([*calibration, *unseen]).ids.shape[1]
    limited = settings.keep is not None or settings.memory is not None
    facts = {"limit": _limit_facts(limit_of(model, settings, prefix), settings)} if limited else {}
    kept = {name: value for name, value in vars(settings).items() if name not in ("batch_size",)}
    asked = {**kept, "prompts": [*calibration, *unseen]}
    here = machine(model.device, model.dtype)
    folder.begin(model.shape, lasting_name(source), asked, here, resume=resume, overwrite=overwrite)
    warn_of_unknown_words(model, [*calibration, *unseen])
    folder.note(prefix=prefix, seed=settings.seed, **facts)
    write_json(folder.path / "prompts.json", {"calibration": calibration, "unseen": unseen})


def _limit_facts(limit: Limit, settings: Settings) -> dict[str, Any]:
    return {
        "text": settings.memory or settings.keep,
        "bytes": limit.bytes,
        "batch": limit.spec.batch,
        "streams": limit.spec.streams,
        "dtype": limit.spec.dtype,
        "of": settings.of,
        "plain_bytes": limit.spec.full_bytes,
    }


def _drawn(
    model: ImageModel,
    path: Path,
    prompts: list[str],
    settings: Settings,
    seed: int,
    what: str,
    progress: Progress | None,
    policy: Policy | None = None,
) -> Samples:
    """Pictures drawn with the full cache (or a policy's), or those that stand in `path` from before a stop."""
    if path.is_file():
        samples = Samples.load(path)
        asked = model.guidance if settings.guidance is None else settings.guidance
        if samples.prompts != prompts or samples.weights != model.shape.weights or samples.guidance != asked:
            raise DataError(f"{path}: holds pictures of other prompts, weights or guidance; choose another folder with --out.")
        return samples
    shown = _as_counts(progress, f"drawing the {what} pictures")
    samples = generate(
        model,
        prompts,
        seed,
        sampling=Sampling(guidance=settings.guidance),
        batch_size=settings.batch_size,
        progress=shown,
        policy=policy,
    )
    samples.save(path)
    return samples


def _as_counts(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(what, done, total, float("nan"))


@contextmanager
def timed(folder: RunFolder, step: str) -> Iterator[None]:
    """Note a step's seconds, and the process' peak memory so far, once it has ended well."""
    started = time.monotonic()
    yield
    facts = {"seconds": round(time.monotonic() - started, 2), "peak_memory_bytes": peak_bytes()}
    folder.note(steps={step: facts})
