"""The table of all statistics, as Markdown: `python -m headscope.tracing.table > docs/statistics.md`."""

from __future__ import annotations

from headscope.tracing import trace as _trace  # noqa: F401 - registers all statistics
from headscope.tracing.catalogue import CURVES, DEFINITIONS, STATISTICS, Statistic

_HEAD = """# Statistics of a head

Made from the docstrings by `python -m headscope.tracing.table`; version {version} of the definitions, which stands in every
trace.

A is one head's attention after the softmax. Queries are the image tokens that the model was fed (t = 0 .. N - 2, N tokens in
the image), keys the prefix without its padding and the image tokens up to the query. Unless a definition says otherwise, a
statistic is a mean over queries. *Set*: `default` is always there, `full` with `headscope trace --full`, which sorts every
query's attention. *High means*: what a high value speaks for, spatial heads (neighbours and the row above) or semantic ones
(few far tokens); `neither` where it separates them badly.

Your own: `headscope.register_statistic("name", function)`, a function of `Accumulated` (see
`headscope/tracing/accumulated.py`) to float32 [B, heads], with a docstring.

## Numbers

One a head, float32 [B, h].

| name | range | unit | high means | set | definition and source |
|---|---|---|---|---|---|
"""
_CURVES = """
`attention_divergence` (full set, two streams): total variation between a query's attention in the conditional and in the
unconditional stream, 1/2 sum_k |A_c - A_u| over the image tokens and the prefix as one key; range 0 .. 1; neither.

## Curves

Means over images of the conditional stream, [layers, heads, shape]: `TraceDataset.curves()`.

| name | shape | range | unit | high means | set | definition and source |
|---|---|---|---|---|---|---|
"""
_REST = """
`cache_divergence` [layers, kv_heads, N - 1] (two streams): how far the keys and values of an image token differ between the
streams, MSE(j) = |K_c[j] - K_u[j]|^2 + |V_c[j] - V_u[j]|^2, each a mean over the head's dimensions (SSD, 2510.18716).

Attention to each word of a prompt: `TraceDataset.words()`.
"""


def table() -> str:
    """The whole page."""
    numbers = [
        f"| `{s.name}` | {s.low} .. {s.high} | {s.unit} | {s.means} | {_set(s)} | {_cell(s.definition)} |"
        for s in STATISTICS.values()
    ]
    curves = [
        f"| `{s.name}` | {s.shape} | {s.low} .. {s.high} | {s.unit} | {s.means} | {_set(s)} | {_cell(s.definition)} |"
        for s in CURVES.values()
    ]
    head = _HEAD.format(version=DEFINITIONS)
    return head + "\n".join(numbers) + "\n" + _CURVES + "\n".join(curves) + "\n" + _REST


def _set(one: Statistic) -> str:
    return "full" if one.full else "default"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(table(), end="")
