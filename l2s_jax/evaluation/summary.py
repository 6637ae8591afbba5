"""The summary of a run: what `summary.json` says, for programs and for the report.

Lives here: making the summary from the answers, and reading it back. Not here: the numbers of one
mode (`stats`), the page (`report`), which bars a run is held to (`cli/bars.py`).

Shape of the file, where `stages → mode` is the output of `stats.summarize`:

    {"stages": {"sft": {"auto": {"accuracy": ..., "tokens": ..., "accuracy_ci": [lo, hi],
                                 "tokens_ci": [lo, hi], "easy_share": ..., "truncated": ...,
                                 "num_questions": ..., "seeds": [0, 1, 2],
                                 "by_level": {"3": {"accuracy": ..., ...}}},
                        "force-long": {...}}},
     "seconds": {"train": ...}, "seeds": [0, 1, 2]}

with several samples of a question also "pass_at" {"2": ..., "4": ...}; in auto also
"p_short_after_easy" {"mean", "percentile_5", "lowest", "num_answers"} and in free
"wrote_short_after_easy" {"share", "num_answers"} (`forced.py`); and, where whoever writes it adds
them, "title", "notes" (lines of text) and "bars" ({"name", "value", "bar", "holds", "note"}).
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from l2s_jax.evaluation.forced import describe_after_easy
from l2s_jax.evaluation.records import MODES, STAGES, Answer, group_by, in_order
from l2s_jax.evaluation.stats import summarize


def build_summary(
    answers: Sequence[Answer], seconds: Mapping[str, Any], seeds: Sequence[int]
) -> dict[str, Any]:
    """Every stage and mode of `answers`, mean over `seeds`, in the shape above.

    Args:
      seconds: what part of the run took how long; may be nested.
      seeds: all training seeds. A stage may have been run with fewer; each entry says which.
    """
    stages = group_by(answers, lambda answer: answer["stage"])
    return {
        "stages": {
            stage: _summarize_stage(stage, stages[stage], seeds)
            for stage in in_order(stages, STAGES)
        },
        "seconds": dict(seconds),
        "seeds": list(seeds),
    }


def read_summary(path: pathlib.Path) -> dict[str, Any]:
    """The content of a `summary.json`, with stages and modes checked to be there."""
    if not path.is_file():
        raise ValueError(
            f"{path}: not found, so there is nothing to report. Run `l2s eval` or `l2s demo` with"
            " this workdir first; they write it when every mode is evaluated."
        )
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not JSON ({error}). Delete it and run `l2s eval` again."
        ) from error
    stages = summary.get("stages") if isinstance(summary, dict) else None
    if not isinstance(stages, dict) or not stages:
        raise ValueError(
            f"{path}: stages={stages!r} holds nothing to report. Run `l2s eval` again."
        )
    for stage, modes in stages.items():
        if not isinstance(modes, dict) or not modes:
            raise ValueError(
                f"{path}: stages.{stage}={modes!r} holds no mode. Run `l2s eval` again."
            )
        for mode, entry in modes.items():
            _check_entry(entry, where=f"{path}: stages.{stage}.{mode}")
    return summary


def _summarize_stage(
    stage: str, answers: Sequence[Answer], seeds: Sequence[int]
) -> dict[str, dict[str, Any]]:
    modes = group_by(answers, lambda answer: answer["mode"])
    found = {mode: sorted({answer["seed"] for answer in modes[mode]}) for mode in modes}
    for mode, had in found.items():
        if strange := sorted(set(had) - set(seeds)):
            raise ValueError(
                f"summary of {stage} {mode}: there are records of seeds {strange}, but the run's"
                f" seeds are {sorted(seeds)}. Name all seeds, or take those records away."
            )
    return {
        mode: summarize(modes[mode]) | describe_after_easy(modes[mode]) | {"seeds": found[mode]}
        for mode in in_order(modes, MODES)
    }


def _check_entry(entry: Any, *, where: str) -> None:
    for field in ("accuracy", "tokens"):
        value = entry.get(field) if isinstance(entry, dict) else None
        if not isinstance(value, int | float):
            raise ValueError(
                f"{where}.{field}={value!r} is no number. Run `l2s eval` again; the summary comes"
                " from another version or another program."
            )
