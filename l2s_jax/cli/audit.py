"""`l2s curate --audit`: a labelled file to figures and a worksheet.

Lives here: what is read and written. Not here: the figures (`curation/audit.py`), the page
(`evaluation/audit_page.py`).
"""

import json
import os
import pathlib
import sys

from l2s_jax.curation.audit import (
    audit,
    audit_items,
    figures,
    planted_noise,
    read_labelled,
)
from l2s_jax.data.jsonl import refuse
from l2s_jax.data.store import replace_file
from l2s_jax.evaluation.audit_page import audit_page
from l2s_jax.verify.math import Verifier


def run_audit(labelled: pathlib.Path, out: pathlib.Path, workdir: pathlib.Path | None) -> None:
    """Writes `audit.json` and `audit.html` into `out`; faulty lines are named at the end."""
    pairs, faults = read_labelled(labelled)
    if not pairs:
        refuse(faults, "nothing is left to audit.")
        raise ValueError(f"{labelled}: no labelled pairs. A line: {{gold, prediction, equivalent}}")
    with Verifier(num_workers=os.cpu_count() or 1) as verifier:
        audited = audit(pairs, verifier)
        summary = {
            "labelled": labelled.name,
            "figures": figures(audited),
            "planted_noise": planted_noise(pairs, verifier),
            "items": None if workdir is None else audit_items(workdir, verifier),
            "left_out": [fault.message for fault in faults],
        }
    disputed = [one for one in audited if one.is_disputed]
    summary["disputed"] = [one.pair.id for one in disputed]
    out.mkdir(parents=True, exist_ok=True)
    report = json.dumps(summary, indent=2, ensure_ascii=False)
    replace_file(out / "audit.json", report.encode())
    replace_file(out / "audit.html", audit_page(summary, disputed).encode())
    told = summary["figures"]["all"]
    print(
        f"{len(pairs)} pairs, accuracy {told['accuracy']:.4f}, {told['num_false_accepts']} false"
        f" accepts, {len(disputed)} in dispute → {out / 'audit.html'}",
        file=sys.stderr,
    )
    refuse(faults, f"the rest is in {out / 'audit.json'}.")
