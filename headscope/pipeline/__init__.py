"""The whole job: all steps for one model, into one run folder."""

from headscope.pipeline.recorded import unseen_images
from headscope.pipeline.run import finish, open_run, read_prompts_of, run, settings_of
from headscope.pipeline.settings import Settings
from headscope.pipeline.tables import groups_of
from headscope.run_folder import RunFolder

__all__ = [
    "RunFolder",
    "Settings",
    "finish",
    "groups_of",
    "open_run",
    "read_prompts_of",
    "run",
    "settings_of",
    "unseen_images",
]
