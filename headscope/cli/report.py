"""`headscope report`: write the page again."""

from __future__ import annotations

from headscope.cli.console import RunPath, say


def report(run: RunPath) -> None:
    """Write report.html from the files of a run. Example: headscope report runs/stickers"""
    from headscope.reporting import write_report

    say(f"report: {write_report(run)}")
