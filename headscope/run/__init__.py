"""The whole job: all steps for one model, into one run folder."""

from headscope.run.folder import RunFolder
from headscope.run.run import finish, open_run, run, settings_of
from headscope.run.steps import Settings

__all__ = ["RunFolder", "Settings", "finish", "open_run", "run", "settings_of"]
