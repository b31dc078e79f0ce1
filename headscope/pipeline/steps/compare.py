"""The searched policy and the presets on unseen prompts."""

from __future__ import annotations

from headscope.models.protocol import ImageModel
from headscope.pipeline.limits import counted_for
from headscope.pipeline.recorded import unseen_images
from headscope.pipeline.settings import Place, Progress, Settings, as_counts
from headscope.pipeline.steps.timed import timed
from headscope.policy.files import load_policy, save_policy
from headscope.policy.footprint import Limit
from headscope.policy.presets import make_preset
from headscope.run_folder import RunFolder
from headscope.storage import write_whole
from headscope.tuning import Replay
from headscope.tuning.compare import COLUMNS, MethodTable, compare_methods


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
        samples = unseen_images(model, folder, prompts, settings, progress)
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
            progress=as_counts(progress, "methods on unseen prompts"),
        )
        into = folder.path if place is None else here.search
        write_whole(into / "methods.csv", lambda path: table.methods.to_csv(path, index=False))
        write_whole(into / "kl_by_row.parquet", lambda path: table.by_row.to_parquet(path, index=False))
        row = table.methods.set_index("method").loc["searched"]
        results = {name: float(row[name]) for name in COLUMNS if name not in ("method", "budget")}
        save_policy(searched.replace(results={**searched.results, "unseen": results}), here.policy)
        return table
