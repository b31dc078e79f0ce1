"""One step, in a process of its own: `python -m headscope.benchmarks.gpu CONTEXT`."""

from __future__ import annotations

import os
import sys
import traceback

# Set before torch is loaded, as for the `headscope` command.
for _name, _value in {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}.items():
    os.environ.setdefault(_name, _value)

REFUSED = 3  # exit status where no step can run here


def main(text: str) -> int:
    """Run a step; what goes wrong stands in the results as a sentence.

    Args:
        text: a `Context`, as it writes itself.

    Returns:
        The exit status: 0, 1 where the step failed, REFUSED where the card is none for it.
    """
    from headscope.benchmarks.gpu import faults
    from headscope.benchmarks.gpu.context import Context, check_card
    from headscope.benchmarks.gpu.steps import STEPS
    from headscope.errors import HeadscopeError

    context = Context.parsed(text)
    try:
        check_card(context.device)
    except HeadscopeError as error:
        print(error, file=sys.stderr)
        return REFUSED
    try:
        STEPS[context.step].run(context)
    except Exception as error:  # whatever it is, the other steps go on
        context.fault(faults.sentence(error, f"step {context.step}"), trace=traceback.format_exc()[-2000:])
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
