"""From a trace to one row of features per KV head."""

from __future__ import annotations

import pandas as pd

from headscope.errors import DataError

# What tells the two kinds apart: where the mass lies in two dimensions, how far, and in how few columns. All are shares or
# scaled to the image, so that they mean the same in models of other sizes.
FEATURES = (
    "sparsity_1",
    "sparsity_image_1",
    "mean_distance",
    "prefix_mass",
    "margin_mass",
    "entropy",
    "column_concentration",
    "row_above",
    "previous_token",
)


def features(table: pd.DataFrame, query_heads: int, kv_heads: int) -> pd.DataFrame:
    """One row per (layer, kv_head): means over pictures, streams and the query heads of the group.

    Args:
        table: of `TraceDataset.heads()`.

    Raises:
        DataError: the table lacks a statistic, or was traced with other heads.
    """
    if missing := [name for name in FEATURES if name not in table.columns]:
        raise DataError(f"The trace lacks {', '.join(missing)}: trace again with this version.")
    if int(table["head"].max()) + 1 != query_heads:
        raise DataError(
            f"The trace has {int(table['head'].max()) + 1} query heads a layer, the model {query_heads}: trace this model."
        )
    group = table.assign(kv_head=table["head"] // (query_heads // kv_heads)).groupby(["layer", "kv_head"])
    return group[list(FEATURES)].mean().astype("float64").fillna(0.0).reset_index()
