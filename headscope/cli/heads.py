"""`headscope heads`: tell spatial heads from semantic ones."""

from __future__ import annotations

from headscope.cli.console import RunPath, Seed, say


def heads(run: RunPath, seed: Seed = 0) -> None:
    """Classify the heads of a trace. Example: headscope heads runs/stickers"""
    from headscope.pipeline import open_run, settings_of
    from headscope.pipeline.steps import heads_step

    model, folder = open_run(run)
    found = heads_step(folder, model, settings_of(folder, seed=seed))
    counts = found.table["class"].value_counts().to_dict()
    say("  ".join(f"{name} {counts.get(name, 0)}" for name in ("spatial", "semantic")))
    say(f"heads: {folder.heads}")
    say(f"next: headscope search {run} --keep 20%")
