"""`headscope search`: find a policy under a byte limit, and measure it on unseen prompts."""

from __future__ import annotations

from headscope.cli.console import (
    Batch,
    Device,
    Dtype,
    Keep,
    KeepOf,
    Memory,
    Quick,
    RunPath,
    Seed,
    Trials,
    limit_options,
    progress,
    say,
    settle_threads,
)


def search(
    run: RunPath,
    keep: Keep = None,
    memory: Memory = None,
    batch: Batch = 1,
    keep_of: KeepOf = "all",
    trials: Trials = 40,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = None,
) -> None:
    """Search a policy; the same command goes on after a stop. Example: headscope search runs/stickers --keep 20%"""
    from headscope.cli.tables import methods_table
    from headscope.pipeline import open_run, settings_of
    from headscope.pipeline.run import read_prompts_of
    from headscope.pipeline.steps import compare_step, search_step

    keep, memory = limit_options(keep, memory)
    model, folder = open_run(run, device, dtype)
    settle_threads(model.name)
    settings = settings_of(folder, keep=keep, memory=memory, batch=batch, of=keep_of, trials=trials, quick=quick, seed=seed)
    with progress() as tell:
        search_step(model, folder, settings, tell)
        compare_step(model, folder, read_prompts_of(folder)["unseen"], settings, tell)
    methods_table(folder.path / "methods.csv", quick)
    say(f"policy: {folder.policy}")
    say(f"next: headscope generate {folder.read()['model']['source']} --policy {folder.policy} --out pictures")
