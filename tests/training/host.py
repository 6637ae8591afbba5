"""One host of several: `python -m tests.training.host '[["sft", "--config", ...], ...]'`.

Runs commands of `l2s` one after another. A trap comes as JSON in L2S_TRAP: `in` which workdir (its
beginning), `at` which place (update, rollout), at its `nth` passing, which `number` of a signal to
send to itself.
"""

import faulthandler
import functools
import json
import os
import sys
from typing import Any

from l2s_jax.cli.main import main
from l2s_jax.sampling.engine import Engine
from l2s_jax.training.guard import Guard

TRAP = json.loads(os.environ["L2S_TRAP"])
at_work: dict[str, Any] = {"workdir": "", "passed": 0}


def before(owner: Any, name: str, place: str) -> None:
    """Makes every call of `owner.name` a place at which the trap may snap."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def call(*args, **kwargs):
        if at_work["workdir"].startswith(TRAP["in"]) and place == TRAP["at"]:
            at_work["passed"] += 1
            if at_work["passed"] == TRAP["nth"]:
                os.kill(os.getpid(), TRAP["number"])
        return inner(*args, **kwargs)

    setattr(owner, name, call)


if __name__ == "__main__":
    faulthandler.enable()
    if TRAP is not None:
        before(Guard, "watch", "update")
        before(Engine, "sample", "rollout")
    for argv in json.loads(sys.argv[1]):
        at_work["workdir"] = argv[argv.index("--workdir") + 1]
        code = main(argv)
        if code:
            sys.exit(code)
