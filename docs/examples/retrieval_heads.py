"""Which heads of a text model fetch the next token from far back? Run it on a folder that `headscope trace smollm2` made.

The copy score: at every place whose next token stands earlier in the text, but not among the last 16 tokens, how much attention
lies on those earlier places. Wu et al. (2404.15574) count how often the place looked at most is one of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import torch

import headscope
from headscope.models.attention import observe
from headscope.models.groups import Group

FAR = 16


def copy_scores(run: Path) -> pd.DataFrame:
    """layer, head, copy (attention on the places to copy from), most (share of places whose first choice is one), chance."""
    model = headscope.load_model("smollm2")
    samples = headscope.TraceDataset(run / "trace").samples()
    layers, heads = model.shape.layers, model.shape.query_heads
    copy, most = torch.zeros(layers, heads), torch.zeros(layers, heads)
    count, chance = 0, 0.0
    for prompt, tokens in zip(samples.prompts, samples.tokens.long(), strict=True):
        ids = torch.cat([model.tokenize([prompt]).ids[0], tokens])
        fed = len(ids) - 1
        key, query = torch.arange(fed)[:, None], torch.arange(fed)[None]
        follows = ids[:-1, None] == ids[None, 1:]  # the key's token is the one that comes after the query
        old = follows & (key <= query - FAR)
        places = (old.any(0) & ~(follows & (key > query - FAR) & (key <= query)).any(0)).nonzero().flatten()
        places = places[places >= fed - len(tokens)]
        if not len(places):
            continue
        sources = old.T[places]

        def look(layer: int, groups: list[Group], places: torch.Tensor = places, sources: torch.Tensor = sources) -> None:
            group = groups[0]
            keys = group.k[0].repeat_interleave(heads // group.k.shape[1], 0)
            logits = group.q[0, :, places] @ keys.transpose(1, 2) * group.scaling
            later = torch.arange(keys.shape[1])[None] > places[:, None]
            attention = logits.masked_fill(later, -torch.inf).softmax(-1)
            copy[layer] += (attention * sources).sum((1, 2))
            most[layer] += sources.expand(heads, -1, -1).gather(2, attention.argmax(-1, keepdim=True)).sum((1, 2))

        with torch.inference_mode(), observe(model.decoder, look):
            model.forward(model.embed_prefix(ids[None, :-1]), torch.ones(1, fed, dtype=torch.long))
        count += len(places)
        chance += float((sources.sum(1) / (places + 1)).sum())
    index = pd.MultiIndex.from_product([range(layers), range(heads)], names=["layer", "head"])
    table = pd.DataFrame({"copy": copy.flatten() / count, "most": most.flatten() / count}, index=index)
    return table.assign(chance=chance / count).sort_values("copy", ascending=False).reset_index()


if __name__ == "__main__":
    print(copy_scores(Path(sys.argv[1])).head(10).round(3).to_string(index=False))
