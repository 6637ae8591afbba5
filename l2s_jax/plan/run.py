"""`l2s plan`: from a recipe and a topology to a table.

Lives here: what the verb does, in order. Not here: its parts.
"""

import pathlib
import sys
from collections.abc import Sequence

from l2s_jax.cli.output import json_lines
from l2s_jax.config import load_config, override
from l2s_jax.evaluation.benchmark import EvalRun
from l2s_jax.plan.advice import advice
from l2s_jax.plan.compiled import measure_all
from l2s_jax.plan.programs import programs_of
from l2s_jax.plan.search import Tried, search
from l2s_jax.plan.subject import subject_of
from l2s_jax.plan.table import as_record, as_table, heading, settings_text
from l2s_jax.plan.topologies import SLICES, topology
from l2s_jax.training.grpo import GrpoRun
from l2s_jax.training.sft import SftRun


def plan(
    config: pathlib.Path,
    name: str,
    assignments: Sequence[str],
    *,
    searches: bool,
    as_json: bool,
) -> bool:
    """True where the run fits; the table goes to standard error, JSON lines to standard output."""
    cfg = override(load_config(config), assignments)
    if not isinstance(cfg, SftRun | GrpoRun | EvalRun):
        raise ValueError(
            f"{config} returns a {type(cfg).__name__}, but l2s plan knows the programs of stage 1,"
            " stage 2 and an evaluation. Give a recipe of l2s sft, l2s grpo or l2s eval."
        )
    if searches and isinstance(cfg, EvalRun):
        raise ValueError(
            "--search tries settings of training. For an evaluation name slices in turn, and cut"
            " its weights with --set mesh.tensor=N."
        )
    subject = subject_of(cfg, config)
    if not searches and name in SLICES:
        raise ValueError(
            f"--topology {name}: name a slice, such as {name}:{SLICES[name].split()[1]}"
            ", or add --search to try them from the smallest up."
        )
    if searches:
        tried, programs = search(cfg, subject, name, _say)
        if not tried:
            raise ValueError(f"--topology {name}: on no slice could this run be shared out or fit.")
        notes = subject.notes if programs is None else programs.notes
        for one in tried:
            _show(one, as_json)
        fits = tried[-1].fits
        if not fits:
            _say(f"does not fit {tried[-1].topology.name} with any setting that was tried")
    else:
        place = topology(name)
        made = programs_of(cfg, subject, place)
        notes = made.notes
        reports = list(measure_all(made.programs, place))
        only = Tried(topology=place, settings={}, reports=reports)
        _show(only, as_json)
        fits = only.fits
        if not fits:
            for line in advice(cfg, reports, place):
                _say(line)
    for note in notes:
        _say(f"assumed: {note}")
    return fits


def _show(tried: Tried, as_json: bool) -> None:
    place = tried.topology
    if as_json:
        with json_lines(None) as write:
            for report in tried.reports:
                where = {"topology": place.name, "chips": place.num_chips}
                write(where | {"settings": tried.settings} | as_record(report, place))
        return
    verdict = "fits" if tried.fits else "does NOT fit"
    _say(f"{heading(place)}; {settings_text(tried)}: {verdict}")
    _say(as_table(tried.reports, place))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
