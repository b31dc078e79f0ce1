"""From a trace to one row of features per KV head."""

from __future__ import annotations

import numpy as np
import pandas as pd

from headscope.errors import DataError

# What tells the two kinds apart: where the mass lies in two dimensions, how far, and in how few columns. The classifier
# standardises them, so that distances in cells stand beside shares.
FEATURES = (
    "sparsity_1",
    "sparsity_image_1",
    "mean_distance",
    "prefix_mass",
    "margin_mass",
    "entropy",
    "column_concentration",
    "row_above",
    "row_above_right",  # above the token about to be drawn, where two heads in three look more than above their own
    "previous_token",
)


def features(table: pd.DataFrame, query_heads: int, kv_heads: int) -> pd.DataFrame:
    """One row per (layer, kv_head): means over images, streams and the query heads of the group.

    Numbers that are not finite are left out of the means; a head that has no other gets the mean of all heads.

    Args:
        table: of `TraceDataset.heads()`.
        query_heads: of a layer of the model.
        kv_heads: of a layer of the model.

    Raises:
        DataError: the table is empty, lacks a statistic, or was traced with other heads.
    """
    if missing := [name for name in FEATURES if name not in table.columns]:
        raise DataError(f"The trace lacks {', '.join(missing)}: trace again with this version.")
    if table.empty:
        raise DataError("The table of statistics has no row; expected one of every image and head.")
    if int(table["head"].max()) + 1 != query_heads:
        raise DataError(
            f"The trace has {int(table['head'].max()) + 1} query heads a layer, the model {query_heads}: trace this model."
        )
    names = list(FEATURES)
    finite = table[names].astype("float64").replace([np.inf, -np.inf], np.nan)
    finite = finite.assign(layer=table["layer"], kv_head=table["head"] // (query_heads // kv_heads))
    means = finite.groupby(["layer", "kv_head"])[names].mean()
    return means.fillna(means.mean()).fillna(0.0).reset_index()


def odd_heads(table: pd.DataFrame) -> int:
    """How many (layer, query head) have a feature that is not finite in some image."""
    names = [name for name in FEATURES if name in table.columns]
    odd = ~np.isfinite(table[names].to_numpy(dtype=np.float64)).all(1)
    return len(table.loc[odd, ["layer", "head"]].drop_duplicates())
