"""Policies in the formats of other tools: what each can hold, what it loses, and how it is read."""

from headscope.policy.exchange.exchange import export_policy, import_policy
from headscope.policy.exchange.formats import FORMATS
from headscope.policy.exchange.record import Exported, Format

__all__ = ["FORMATS", "Exported", "Format", "export_policy", "import_policy"]
