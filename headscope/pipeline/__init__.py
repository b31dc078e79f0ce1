"""The whole job: all steps for one model, into one run folder."""

from headscope.pipeline.run import finish, open_run, run, settings_of
from headscope.pipeline.settings import Settings
from headscope.run_folder import RunFolder

__all__ = ["RunFolder", "Settings", "finish", "open_run", "run", "settings_of"]
