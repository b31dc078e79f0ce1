"""The whole job: all steps for one model, into one run folder."""

from headscope.pipeline.opened import Run, begin_run, open_run
from headscope.pipeline.recorded import unseen_images
from headscope.pipeline.run import finish, run
from headscope.pipeline.tables import groups_of
from headscope.run_folder import RunFolder

__all__ = ["Run", "RunFolder", "begin_run", "finish", "groups_of", "open_run", "run", "unseen_images"]
