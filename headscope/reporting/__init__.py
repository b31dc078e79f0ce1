"""Reports: one page and contact sheets that people would rather look at than read."""

from headscope.reporting.page import write_report
from headscope.reporting.sheets import contact_sheet

__all__ = ["contact_sheet", "write_report"]
