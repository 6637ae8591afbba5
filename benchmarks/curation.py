"""Curation of recorded traces at full size: seconds, acceptance, and what a second opinion says.

Runs the recipe of `configs/curate_gsm8k_traces.py` (DeepSeek-R1 long, every short model a
candidate) on a file of traces, decontaminated against the benchmarks given, then decides every kept
path again with `verify/second.py`, which shares no line with the verifier.

    python benchmarks/curation.py --traces ../shared/data/traces/mip_gsm8k_paired.jsonl \
        --tokenizer ../shared/data/tokenizers/qwen2.5 --workdir runs/curation

Prints one JSON line. The traces answer GSM8K's own test questions: with gsm8k_test.jsonl among the
--benchmarks nothing is left to curate, and the run says so.
"""

import argparse
import collections
import json
import pathlib
import time

from l2s_jax.config import load_config, override
from l2s_jax.curation.reject import run
from l2s_jax.data.store import read_items
from l2s_jax.evaluation.curation_report import write_curation_report
from l2s_jax.verify.answers import answer_or_text
from l2s_jax.verify.second import second_opinion

RECIPE = pathlib.Path(__file__).parents[1] / "configs" / "curate_gsm8k_traces.py"


def opinions(folder: pathlib.Path) -> dict[str, int]:
    """How often the second implementation says yes, no, or nothing of a kept path's answer."""
    found: collections.Counter[str] = collections.Counter()
    names = {True: "right", False: "wrong", None: "no-opinion"}
    for item in read_items(folder):
        for text in (item.long_answer, item.short_answer):
            if text is not None:
                found[names[second_opinion(item.reference, answer_or_text(text) or "")]] += 1
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--benchmarks", nargs="*", default=[])
    args = parser.parse_args()
    changes = [f"source.path={args.traces}", f"tokenizer={args.tokenizer}"]
    changes += ["second_opinion=false"]  # or it would be asked of itself
    changes += [f"hygiene.benchmarks={json.dumps(args.benchmarks)}"]
    start = time.perf_counter()
    run(override(load_config(RECIPE), changes), args.workdir)
    write_curation_report(args.workdir)
    seconds = time.perf_counter() - start
    summary = json.loads((args.workdir / "summary.json").read_text())
    kept = ("num_problems", "num_items", "num_easy", "outcomes", "acceptance_by_teacher")
    line = {name: summary[name] for name in (*kept, "rejections", "tokens", "hygiene")}
    opinion = opinions(args.workdir / "items")
    print(json.dumps({"seconds": round(seconds, 2), "second_opinion": opinion, **line}))


if __name__ == "__main__":
    main()
