"""`l2s demo`: the whole method on the arithmetic world, from teachers to a Hugging Face folder.

Lives here: the chain of runs and what it leaves behind. Not here: the runs' hyper-parameters
(`cli/recipes.py`), the bars (`cli/bars.py`), the page (`evaluation/report.py`).

Every run of the chain has its own folder under the workdir and goes on where it was stopped, and
so does the demo.
"""

import dataclasses
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from l2s_jax.cli import recipes
from l2s_jax.cli.bars import judge_bars
from l2s_jax.cli.devices import use_cpu_cores
from l2s_jax.config import claim_workdir
from l2s_jax.curation import reject
from l2s_jax.data.store import replace_file
from l2s_jax.evaluation import benchmark
from l2s_jax.evaluation.records import read_records
from l2s_jax.evaluation.report import write_report
from l2s_jax.evaluation.summary import build_summary
from l2s_jax.export.hf import export_checkpoint
from l2s_jax.training import grpo, sft

SEEDS, QUICK_SEEDS = (7, 8, 9), (7,)  # none of them was used to choose a hyper-parameter
TITLE = "AutoL2S in the arithmetic world"
NOTES = (
    "The base model knows both styles of answer and no trigger; curation labels a question EASY"
    " when one of four trials of the terse teacher is right.",
    "grpo_v2 rewards right answers, grpo_plus also short ones; both sample from the stage 1 policy"
    " and are clipped at 0.2 against it.",
    "verbatim is stage 1 in the paper's own layout, the short path written after the long one. At"
    " this size the model then learns to copy from a long path that it will not see.",
)

QUICK_NOTE = (
    "This was `l2s demo --quick`: one seed and a fraction of the steps and questions. The bars are"
    " those of the whole demo."
)

Job = tuple[str, Callable[[], None]]  # what a person is told, and what is done


def run_demo(workdir: str | pathlib.Path, *, quick: bool = False) -> None:
    """Leaves `report.html`, `summary.json` and `hf/` in `workdir`."""
    use_cpu_cores()
    workdir = pathlib.Path(workdir)
    seeds = QUICK_SEEDS if quick else SEEDS
    scale = recipes.QUICK if quick else recipes.FULL
    jobs = [job for seed in seeds for job in _jobs_of(workdir, seed, scale)]
    jobs += [("verbatim layout", lambda: _verbatim(workdir, seeds[0], scale))]
    jobs += [("Hugging Face folder", lambda: _export(workdir, seeds[0]))]
    seconds: dict[str, float] = {}
    start = time.monotonic()
    for number, (name, act) in enumerate(jobs, start=1):
        before = time.monotonic()
        act()
        now = time.monotonic()
        seconds[name] = round(now - before, 2)
        left = (now - start) / number * (len(jobs) - number)
        _say(f"[{number}/{len(jobs)}] {name}: {now - before:.1f} s, about {left:.0f} s left")
    seconds["total"] = round(time.monotonic() - start, 2)
    _gather_metrics(workdir, seeds)
    _summarise(workdir, seeds, seconds, (QUICK_NOTE, *NOTES) if quick else NOTES)
    _say(f"report: {write_report(workdir)}")


def _jobs_of(workdir: pathlib.Path, seed: int, scale: recipes.Scale) -> Iterator[Job]:
    """The chain of one seed, in order."""
    folder = workdir / f"seed{seed}"
    items, base = str(folder / "items"), str(folder / "sft")
    runs = [
        ("curate", reject, recipes.curate(seed, scale), "items"),
        ("sft", sft, recipes.stage1(items, seed, scale=scale), "sft"),
        ("grpo_v2", grpo, recipes.stage2_v2(base, seed, scale), "grpo_v2"),
        ("grpo_plus", grpo, recipes.stage2_plus(base, seed, scale=scale), "grpo_plus"),
    ]
    for name, module, cfg, place in runs:
        yield f"seed {seed}: {name}", _claimed(module, cfg, folder / place)
        if name != "curate":
            yield (
                f"seed {seed}: answers of {name}",
                _evaluation(workdir, folder / place, seed, scale),
            )


def _claimed(module: Any, cfg: Any, folder: pathlib.Path) -> Callable[[], None]:
    def act() -> None:
        claim_workdir(cfg, folder)
        module.run(cfg, folder)

    return act


def _evaluation(
    workdir: pathlib.Path, model: pathlib.Path, seed: int, scale: recipes.Scale
) -> Callable[[], None]:
    """Answers in every mode, as records of the whole demo."""

    def act() -> None:
        stage = model.name
        cfg = recipes.evaluation(str(model), stage, seed, scale)
        folder = model.parent / f"eval_{stage}"
        _claimed(benchmark, cfg, folder)()
        (workdir / "records").mkdir(exist_ok=True)
        name = f"{stage}-{seed}.jsonl"
        shutil.copyfile(folder / "records" / name, workdir / "records" / name)
        modes = json.loads((folder / "summary.json").read_text())["stages"][stage]
        for mode, entry in modes.items():
            _say(f"    {mode:11s} {entry['accuracy']:6.1%} right, {entry['tokens']:5.1f} tokens")

    return act


def _verbatim(workdir: pathlib.Path, seed: int, scale: recipes.Scale) -> None:
    """The paper's layout from the same items, for the comparison beside `matched`."""
    folder = workdir / f"seed{seed}"
    cfg = recipes.stage1(str(folder / "items"), seed, "long-short", scale)
    _claimed(sft, cfg, folder / "verbatim")()
    _evaluation(workdir, folder / "verbatim", seed, scale)()


def _export(workdir: pathlib.Path, seed: int) -> None:
    """The Plus policy as a Hugging Face folder, its measured answers in the card."""
    model = workdir / f"seed{seed}" / "grpo_plus"
    shutil.copyfile(model.parent / "eval_grpo_plus" / "summary.json", model / "summary.json")
    shutil.rmtree(workdir / "hf", ignore_errors=True)  # of an earlier run of the demo
    export_checkpoint(model, workdir / "hf")


def _gather_metrics(workdir: pathlib.Path, seeds: Sequence[int]) -> None:
    """`metrics/<stage>.jsonl`: the curves of all seeds, for the report."""
    (workdir / "metrics").mkdir(exist_ok=True)
    for stage in ("sft", "grpo_v2", "grpo_plus"):
        rows = []
        for seed in seeds:
            lines = (workdir / f"seed{seed}" / stage / "metrics.jsonl").read_text().splitlines()
            rows += [json.dumps({"seed": seed} | json.loads(line)) for line in lines]
        replace_file(workdir / "metrics" / f"{stage}.jsonl", "\n".join(rows).encode() + b"\n")


def _summarise(
    workdir: pathlib.Path, seeds: Sequence[int], seconds: dict[str, float], notes: Sequence[str]
) -> None:
    """`summary.json`, and on stderr which bars were held."""
    summary = build_summary(read_records(workdir / "records"), seconds, seeds)
    bars = judge_bars(summary["stages"])
    more = {"title": TITLE, "notes": notes, "bars": [dataclasses.asdict(bar) for bar in bars]}
    replace_file(workdir / "summary.json", json.dumps(summary | more, indent=2).encode())
    for bar in bars:
        held = "held" if bar.holds else "NOT HELD"
        _say(f"{held:8s} {bar.name}: {bar.value:.3f} (bar {bar.bar})")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
