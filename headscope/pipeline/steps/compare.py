"""The searched policy and the presets on unseen prompts."""

from __future__ import annotations

from headscope.errors import HeadscopeError
from headscope.models import ImageModel, load_model
from headscope.pipeline.opened import Run
from headscope.pipeline.recorded import unseen_images
from headscope.pipeline.steps.paths import SearchPaths
from headscope.pipeline.steps.timed import timed
from headscope.policy import Limit, load_policy, make_preset, save_policy
from headscope.progress import renamed
from headscope.storage import write_csv, write_parquet
from headscope.tuning import METHOD_COLUMNS, MethodTable, Replay, compare_methods


def compare_step(run: Run, paths: SearchPaths | None = None) -> MethodTable:
    """Measure the searched policy and the presets on unseen prompts: unseen.parquet, methods.csv, kl_by_row.parquet.

    Args:
        run: whose unseen prompts.
        paths: where the search keeps its files; by default it is the run's only one.
    """
    paths, model = paths or SearchPaths.of(run.folder), run.model
    with timed(run.folder, "compare"):
        samples = unseen_images(run)
        searched = load_policy(paths.policy, model.shape)
        full = Limit.of_share("100%", run.spec().replace(prefix=searched.prefix))
        policies = {"full": make_preset("full", full), "searched": searched}
        for path in sorted((paths.search / "presets").glob("*.safetensors")):
            policies[path.stem] = load_policy(path, model.shape)
        table = compare_methods(
            Replay(model, samples, by_stream=False),
            policies,
            run.config.limit.text,
            run.spec(),
            rounded=_rounded(run),
            seed=run.config.search.seed,
            progress=renamed(run.progress, "methods on unseen prompts"),
        )
        write_csv(table.methods, paths.tables / "methods.csv")
        write_parquet(table.by_row, paths.tables / "kl_by_row.parquet")
        row = table.methods.set_index("method").loc["searched"]
        results = {name: float(row[name]) for name in METHOD_COLUMNS if name not in ("method", "budget", "bits")}
        save_policy(searched.replace(results={**searched.results, "unseen": results}), paths.policy)
        return table


def _rounded(run: Run) -> ImageModel | None:
    """The model in bfloat16, where it runs in more; None where nothing is rounded, or it can't be had in another dtype."""
    if run.model.dtype.itemsize <= 2:
        return None
    try:
        return load_model(run.config.model, device=str(run.model.device), dtype="bfloat16")
    except HeadscopeError:
        return None
