"""Reports: one page and contact sheets that people would rather look at than read."""

from headscope.reporting.card import write_card
from headscope.reporting.charts import ablation_panels, front as front_chart
from headscope.reporting.evaluation import write_evaluation
from headscope.reporting.explain import explain_head
from headscope.reporting.fronts import budgets_figure, meaning_figure, trials_figure
from headscope.reporting.gallery import write_figures
from headscope.reporting.gpu import write_gpu_page
from headscope.reporting.page import write_report
from headscope.reporting.sheets import contact_sheet
from headscope.reporting.style import save_figure

__all__ = [
    "ablation_panels",
    "budgets_figure",
    "contact_sheet",
    "explain_head",
    "front_chart",
    "meaning_figure",
    "save_figure",
    "trials_figure",
    "write_card",
    "write_evaluation",
    "write_figures",
    "write_gpu_page",
    "write_report",
]
