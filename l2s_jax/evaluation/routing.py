"""What the report says about the router: its errors, the oracle's score, its calibration.

Lives here: one section of the page. Not here: the numbers (`calibration`), the figure (`plots`),
the other sections (`report`).
"""

import math
from collections.abc import Mapping, Sequence

from l2s_jax.evaluation import calibration, page, plots


def section(paired: Mapping[str, Sequence[calibration.Switch]]) -> str:
    """The section on the router of every stage in `paired`."""
    title = "Does the router know?"
    if not paired:
        lack = (
            "No stage has records in all of auto, force-long and force-short on the same questions."
        )
        return page.section(title, page.missing(lack))
    intro = (
        "Each question was answered in both forced modes too, so every choice of route can be"
        " judged. false-easy: sent short, but only the long path is right (costs an answer)."
        " missed-easy: kept long although the short path is right (costs tokens). hopeless:"
        " neither path is right. The oracle takes the shortest right path of each question."
    )
    choices = [page.text("h3", stage) + _choices(paired[stage]) for stage in paired]
    return page.section(
        title,
        page.text("p", intro),
        _router_table(paired),
        _gate_figure(paired),
        page.details("All choices of route", *choices),
    )


def _router_table(paired: Mapping[str, Sequence[calibration.Switch]]) -> str:
    rows = []
    for stage, switches in paired.items():
        kinds = calibration.count_kinds(switches)
        error = calibration.calibration_error(_bins(switches))
        rows.append(
            [page.cell(stage)]
            + [page.cell(page.percent(kinds[kind] / len(switches))) for kind in kinds]
            + [
                _score(calibration.routed_by_model(switches)),
                _score(calibration.routed_by_oracle(switches)),
                page.cell("–" if math.isnan(error) else f"{error:.3f}"),
            ]
        )
    head = ["stage", *calibration.ERROR_KINDS, "the router", "the oracle", "calibration error"]
    return page.table(head, rows)


def _score(routed: calibration.Routed) -> str:
    return page.cell(page.percent(routed.accuracy), f"{routed.tokens:.1f} tokens")


def _gate_figure(paired: Mapping[str, Sequence[calibration.Switch]]) -> str:
    bins = {stage: _bins(switches) for stage, switches in paired.items()}
    gated = {stage: found for stage, found in bins.items() if any(one.count for one in found)}
    if not gated:
        return page.missing("The records hold no p(EASY), so its calibration cannot be shown.")
    caption = (
        "p(EASY), the probability of opening with <EASY> and not <LONG>, against how often the"
        " short path is in fact right. On the dotted line the router means what it says; a larger"
        " dot stands for more questions."
    )
    return page.figure(plots.calibration(gated), caption)


def _bins(switches: Sequence[calibration.Switch]) -> list[calibration.Bin]:
    return calibration.reliability(*calibration.judged_gates(switches))


def _choices(switches: Sequence[calibration.Switch]) -> str:
    truths = {
        "both paths right": (True, True),
        "only short right": (True, False),
        "only long right": (False, True),
        "neither right": (False, False),
    }
    table = calibration.count_cases(switches)
    rows = []
    for name, (short_right, long_right) in truths.items():
        row = [page.cell(name)]
        for routed_short in (True, False):
            case = calibration.Case(
                routed_short=routed_short, short_right=short_right, long_right=long_right
            )
            row.append(page.cell(str(table[case]), case.kind))
        rows.append(row)
    return page.table(["", "sent short", "kept long"], rows)
