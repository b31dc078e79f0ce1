"""Reports: one page and contact sheets that people would rather look at than read."""

from headscope.reporting.fronts import budgets_figure, meaning_figure, trials_figure
from headscope.reporting.page import write_report
from headscope.reporting.sheets import contact_sheet
from headscope.reporting.style import save_figure

__all__ = [
    "budgets_figure",
    "contact_sheet",
    "meaning_figure",
    "save_figure",
    "trials_figure",
    "write_report",
]
