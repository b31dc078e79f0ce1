"""Images of the unseen prompts with the full cache and with the policy."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from headscope.models import ImageModel
from headscope.pipeline.images import save_png
from headscope.pipeline.opened import Run
from headscope.pipeline.steps.timed import timed
from headscope.policy import Policy, load_policy
from headscope.progress import renamed
from headscope.reporting import contact_sheet
from headscope.runtime import Sampling, decoder_name, generate
from headscope.samples import Samples
from headscope.storage import write_parquet


def generate_step(run: Run) -> pd.DataFrame:
    """Generate the unseen prompts with the policy too: images/full, images/searched, sheet.png, images.parquet."""
    model, folder = run.model, run.folder
    full, policy = Samples.load(folder.unseen), load_policy(folder.policy, model.shape)
    with timed(folder, "generate"):
        searched = generate(
            model,
            full.prompts,
            full.seeds.tolist(),
            policy=policy,
            sampling=Sampling.of_samples(full),
            batch_size=run.config.batch_size,
            progress=renamed(run.progress, "generating with the policy"),
        )
        folder.note(decoders={"searched": decoder_name(model, policy)})
        return write_images(model, full, searched, folder.images, policy)


def write_images(model: ImageModel, full: Samples, searched: Samples, out: Path, policy: Policy) -> pd.DataFrame:
    """PNG files of both, a contact sheet side by side, and a table of how many tokens agree.

    Args:
        model: whose tokens they are.
        full: images of the full cache.
        searched: images of the same prompts and seeds with the policy.
        out: the folder.
        policy: that they were generated with.

    Returns:
        The content of images.parquet: index, prompt, seed, token_agreement (share of equal tokens), policy
        (its fingerprint).
    """
    images = {"full": model.to_images(full.tokens), "searched": model.to_images(searched.tokens)}
    for name, each in images.items():
        for number, image in enumerate(each):
            save_png(image, out / name / f"{number:03d}.png")
    agreement = (full.tokens == searched.tokens).float().mean(1)
    rows = [(prompt, [images["full"][i].numpy(), images["searched"][i].numpy()]) for i, prompt in enumerate(full.prompts)]
    contact_sheet(rows, ["full cache", "policy"], out / "sheet.png")
    table = pd.DataFrame(
        {
            "index": range(len(full)),
            "prompt": full.prompts,
            "seed": full.seeds.tolist(),
            "token_agreement": agreement.tolist(),
            "policy": policy.fingerprint(),
        }
    )
    write_parquet(table, out / "images.parquet")
    return table
