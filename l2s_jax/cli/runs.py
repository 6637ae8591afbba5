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
from l2s_jax.data.jsonl import FaultyLines

RUNS = {
    "curate": ("l2s_jax.curation.reject", "CurateRun"),
    "sft": ("l2s_jax.training.sft", "SftRun"),
    "grpo": ("l2s_jax.training.grpo", "GrpoRun"),
    "eval": ("l2s_jax.evaluation.benchmark", "EvalRun"),
}
"""Verb → the module whose `run` it calls, and the class of config that this takes."""

ONE_HOST = ("curate",)  # needs no accelerator: where there are several hosts, the first does it


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
    from l2s_jax.training import hosts  # imports jax: not before the config is known to be there

    with _claimed(cfg, workdir):
        if verb in ONE_HOST:
            hosts.check_all(lambda: _run(verb, module, cfg, workdir) if hosts.is_first() else None)
        else:
            _run(verb, module, cfg, workdir)


def _run(verb: str, module: Any, cfg: Any, workdir: pathlib.Path) -> None:
    try:
        module.run(cfg, workdir)
    except FaultyLines:  # the run did all that it could, and this belongs to it
        _write_page(verb, workdir)
        raise
    _write_page(verb, workdir)


def _write_page(verb: str, workdir: pathlib.Path) -> None:
    """The page of a run that has one of its own; an evaluation's waits for `l2s report`."""
    if verb == "curate":
        from l2s_jax.evaluation.curation_report import write_curation_report

        write_curation_report(workdir)


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
    from l2s_jax.training import hosts

    is_new = not (workdir / CONFIG_FILE).exists()
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    # The first host claims it for all, so that no two write one file at once.
    hosts.check_all(lambda: claim_workdir(cfg, workdir) if hosts.is_first() else None)
    hosts.check_shared(workdir)
    try:
        yield
    except (ValueError, OSError):
        left = [path.name for path in workdir.iterdir()]
        if is_new and hosts.is_first() and left == [CONFIG_FILE]:
            (workdir / CONFIG_FILE).unlink()
            with contextlib.suppress(OSError):  # another run may live in a parent by now
                for folder in made:
                    folder.rmdir()
        raise
