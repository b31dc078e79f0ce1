"""Guidance runs two streams, with and without the prompt: where do their caches and their attention differ?"""

from __future__ import annotations

import torch

from headscope.geometry import Geometry
from headscope.models import Group
from headscope.tracing.selection import Selection


def cache_divergence(group: Group, prefix: int) -> torch.Tensor:
    """How far a token's keys and values differ between the streams (SSD 2510.18716): MSE(j) = |K_c[j] - K_u[j]|^2 +
    |V_c[j] - V_u[j]|^2, each a mean over head_dim; the keys with their rotary embedding, which changes no distance.

    Args:
        group: all heads of a layer, the conditional half of the batch first.
        prefix: P, prefix positions, padding included.

    Returns:
        float32 [images, kv_heads, fed], by image token j.
    """
    found = torch.zeros(())
    for values in (group.k, group.v):
        assert values is not None
        conditional, unconditional = values[:, :, prefix:].float().chunk(2)
        found = found.to(values.device) + (conditional - unconditional).square().mean(-1)
    return found


def attention_divergence(group: Group, geometry: Geometry, prefix: int, selection: Selection) -> torch.Tensor:
    """How far a query's attention differs between the streams: total variation, 1/2 sum_k |A_c - A_u| over the image tokens
    and the prefix as one key (its tokens are different ones), mean over queries. Range 0 .. 1.

    Returns:
        float32 [images, h].
    """
    heads = group.q.shape[1]
    chosen = list(range(heads)) if selection.heads is None else [h for h in selection.heads if h < heads]
    share = heads // group.k.shape[1]
    fed = group.q.shape[2] - prefix
    total = torch.zeros(group.q.shape[0] // 2, len(chosen), device=group.q.device)
    count = 0
    for band in selection.bands(geometry.rows):
        for row in band:
            asked = selection.queries(geometry, range(row, row + 1), fed)
            count += len(asked)
            if not len(asked):
                continue
            stop = prefix + int(asked[-1]) + 1
            later = (torch.arange(stop) > prefix + asked[:, None]).to(group.q.device)
            for number, head in enumerate(chosen):
                q = group.q[:, head, (prefix + asked).to(group.q.device)].float() * group.scaling
                logits = q @ group.k[:, head // share, :stop].float().transpose(1, 2)
                if group.bias is not None:
                    bias = group.bias[:, min(head, group.bias.shape[1] - 1)]
                    logits += bias[:, (prefix + asked).to(bias.device), :stop].float()
                hidden = later[None]
                if group.visible is not None:
                    seen = group.visible[:, 0, -1, :prefix].expand(len(q), prefix)
                    hidden = hidden | torch.nn.functional.pad(~seen, (0, stop - prefix), value=False)[:, None]
                weights = logits.masked_fill_(hidden, -torch.inf).softmax(-1)
                conditional, unconditional = weights.chunk(2)
                apart = (conditional - unconditional)[..., prefix:].abs().sum(-1)
                apart += (conditional[..., :prefix].sum(-1) - unconditional[..., :prefix].sum(-1)).abs()
                total[:, number] += 0.5 * apart.sum(-1)
    return total / max(count, 1)
