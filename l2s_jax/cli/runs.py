"""From a config file to a run: load, override, claim the workdir, go.

Lives here: what curate, sft, grpo and eval have in common. Not here: the runs themselves, each
beside its config (`curation`, `training`, `evaluation`).
"""

import contextlib
import importlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from l2s_jax.config import CONFIG_FILE, claim_workdir, load_config, override

RUNS = {
    "curate": ("l2s_jax.curation.reject", "CurateRun"),
    "sft": ("l2s_jax.training.sft", "SftRun"),
    "grpo": ("l2s_jax.training.grpo", "GrpoRun"),
    "eval": ("l2s_jax.evaluation.benchmark", "EvalRun"),
}
"""Verb → the module whose `run` it calls, and the class of config that this takes."""


def run_config(
    verb: str, config: pathlib.Path, workdir: pathlib.Path, assignments: Sequence[str]
) -> None:
    """Does the run of a config file in `workdir`; called again, an interrupted run goes on."""
    cfg = load_config(config)
    module_name, class_name = RUNS[verb]
    module = importlib.import_module(module_name)
    if not isinstance(cfg, getattr(module, class_name)):
        raise ValueError(_wrong_kind(verb, config, cfg))
    cfg = override(cfg, assignments)
    with _claimed(cfg, workdir):
        module.run(cfg, workdir)


def _wrong_kind(verb: str, config: pathlib.Path, cfg: Any) -> str:
    given = type(cfg).__name__
    right = [other for other, (_, class_name) in RUNS.items() if class_name == given]
    fix = f"Use l2s {right[0]}" if right else "Give a config that does"
    return f"{config} returns a {given}, but l2s {verb} runs a {RUNS[verb][1]}. {fix}."


@contextlib.contextmanager
def _claimed(cfg: Any, workdir: pathlib.Path) -> Iterator[None]:
    """The workdir claimed; given back where the run could not even start.

    Otherwise the corrected config would be told that the folder belongs to the faulty one.
    """
    is_new = not (workdir / CONFIG_FILE).exists()
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    claim_workdir(cfg, workdir)
    try:
        yield
    except (ValueError, OSError):
        if is_new and [path.name for path in workdir.iterdir()] == [CONFIG_FILE]:
            (workdir / CONFIG_FILE).unlink()
            with contextlib.suppress(OSError):  # another run may live in a parent by now
                for folder in made:
                    folder.rmdir()
        raise
