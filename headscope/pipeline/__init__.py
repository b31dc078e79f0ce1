"""The whole job: all steps for one model, into one run folder."""

from headscope.pipeline.folder import RunFolder
from headscope.pipeline.run import finish, open_run, run, settings_of
from headscope.pipeline.steps import Settings

__all__ = ["RunFolder", "Settings", "finish", "open_run", "run", "settings_of"]
