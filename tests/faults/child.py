"""`l2s` with a trap: `run(["sft", "--config", ..., "--workdir", ...])`, in a process of its own.

Functions are wrapped from outside (`wrap_all`) before the program imports them; each does all that
it did, and the program has no hook. What the trap is comes as JSON in L2S_TRAP; where to note what
was trained on and sampled, in L2S_NOTES.

A trap: `at` (a key of `wrap_all`'s table), `nth` call of that (from 1), `number` of the signal, and
`delay` in seconds after which it is sent, while the call goes on; `is_cold` keeps what was compiled
before out of reach.
"""

import functools
import hashlib
import json
import os
import pathlib
import threading
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from l2s_jax.cli.main import main
from l2s_jax.sampling.engine import Engine
from l2s_jax.training import checkpoint, manifest
from l2s_jax.training import step as step_module
from l2s_jax.verify import math as verify_module

TRAP: dict[str, Any] = {}
calls: dict[str, int] = {}


def note(**fields) -> None:
    with pathlib.Path(os.environ["L2S_NOTES"]).open("a") as file:
        file.write(json.dumps(fields) + "\n")


def digest(arrays) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.asarray(jax.device_get(array)).tobytes())
    return sha.hexdigest()[:16]


def pass_by(place: str) -> None:
    """Where the trap may snap."""
    if TRAP.get("at") != place:
        return
    calls[place] = calls.get(place, 0) + 1
    if calls[place] != TRAP["nth"]:
        return

    def snap() -> None:
        note(signal=TRAP["number"], at=place, time=time.time())
        os.kill(os.getpid(), TRAP["number"])

    if TRAP["delay"]:
        timer = threading.Timer(TRAP["delay"], snap)
        timer.daemon = True
        timer.start()
    else:
        snap()


def around(owner, name: str, before: str | None = None, after: str | None = None) -> None:
    """Places before and after every call of `owner.name`."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def call(*args, **kwargs):
        if before is not None:
            pass_by(before)
        result = inner(*args, **kwargs)
        if after is not None:
            pass_by(after)
        return result

    setattr(owner, name, call)


def wrap_steps() -> None:
    """Every update is a place, and its batch is noted by the step's number."""
    inner = step_module.compile_step

    def compile_step(*args, **kwargs):
        step_fn = inner(*args, **kwargs)

        def call(state, batch):
            note(step=int(state.step), batch=digest(jax.tree.leaves(batch)))
            pass_by("update")
            return step_fn(state, batch)

        return call

    step_module.compile_step = compile_step


def wrap_sampling() -> None:
    """Every call is a place as it begins and ends; what came is noted by key and requests."""
    inner = Engine.sample

    def sample(self, requests, key, **kwargs):
        named = [request.id for request in requests]
        drawn_by = digest([jax.random.key_data(key)])
        pass_by("rollout")
        rollouts = inner(self, requests, key, **kwargs)
        ids = digest(array for r in rollouts for array in (r.token_ids, r.logp))
        note(key=drawn_by, requests=named, rollouts=ids)
        pass_by("between rollout and update")
        return rollouts

    Engine.sample = sample


def wrap_all() -> None:
    wrap_steps()
    wrap_sampling()
    around(verify_module, "decide", before="verification")
    around(ocp.AsyncCheckpointer, "save", before="save, before", after="save, writing")
    around(checkpoint, "seal", before="save, unsealed", after="save, done")
    around(manifest, "write", after="save, sealed")
    around(checkpoint.shutil, "rmtree", before="save, deleting an old one")


def run(arguments: list[str]) -> int:
    """The exit code of the program."""
    TRAP.update(json.loads(os.environ["L2S_TRAP"]))
    if TRAP.get("is_cold"):
        jax.config.update("jax_compilation_cache_dir", None)
    return main(arguments)
