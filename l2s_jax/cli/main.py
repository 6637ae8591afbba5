"""The program `l2s`: its verbs, their options, and what a mistake looks like.

Lives here: the parser, and the last line of defence between an error and the person who reads it.
Not here: what a verb does (`cli/runs.py`, `cli/demo.py`, `cli/generate.py`, `cli/verify.py`, and
`export`, `evaluation` for the rest). Nothing heavy is imported before a verb runs, so that
`l2s --help` answers at once.

Exit codes: 0 done, 1 a fault of ours (with its traceback), 2 a user's mistake (with one message
that names the fix), 3 planned and does not fit, 130 interrupted, 143 terminated (SIGTERM; a
training run has saved its steps).
"""

import argparse
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence

from l2s_jax import __version__
from l2s_jax.cli.devices import quiet_absent_tpu

USER_MISTAKES = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)

NO_FIT = 3  # exit code of `l2s plan`

MODES = ("auto", "force-long", "force-short", "free")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of `l2s` with these arguments."""
    args = _parser().parse_args(argv)
    quiet_absent_tpu()
    return exit_code(args)


def exit_code(args: argparse.Namespace) -> int:
    """Does `args.act(args)`: its exit code, 0 without one, or what its failure calls for."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _say(args, f"warning: {message}")
            return args.act(args) or 0
    except USER_MISTAKES as error:
        if os.environ.get("L2S_TRACEBACK"):
            raise
        _say(args, str(error))
        return 2
    except KeyboardInterrupt:
        _say(args, "interrupted")
        return 130
    except BrokenPipeError:
        # Who read our output has gone; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _say(args: argparse.Namespace, message: str) -> None:
    print(f"l2s {args.verb}: {message}", file=sys.stderr)


# ---- verbs ----


def _demo(args: argparse.Namespace) -> None:
    from l2s_jax.cli.demo import run_demo

    run_demo(args.workdir, quick=args.quick)


def _curate(args: argparse.Namespace) -> None:
    if args.audit is None:
        if args.out is not None:
            raise ValueError("--out goes with --audit. A run writes into --workdir.")
        if args.config is None or args.workdir is None:
            raise ValueError("give --config and --workdir, or --audit LABELLED.jsonl --out DIR.")
        _run(args)
        return
    if args.out is None or args.config is not None or args.set:
        raise ValueError("--audit takes --out DIR, and --workdir of a curation if you like.")
    from l2s_jax.cli.audit import run_audit

    run_audit(args.audit, args.out, args.workdir)


def _run(args: argparse.Namespace) -> None:
    from l2s_jax.cli.join import together
    from l2s_jax.cli.runs import run_config

    with together(lambda message: _say(args, message)):
        run_config(args.verb, args.config, args.workdir, args.set)
        _say(args, f"done: {args.workdir}")


def _generate(args: argparse.Namespace) -> None:
    from l2s_jax.cli.generate import generate

    generate(
        model=args.model,
        prompts=args.prompts,
        out=args.out,
        mode=args.mode,
        samples=args.samples,
        temperature=args.temperature,
        top_p=args.top_p,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        dtype=args.dtype,
        tensor=args.tensor,
    )


def _verify(args: argparse.Namespace) -> None:
    from l2s_jax.cli.verify import verify

    verify(args.pairs, args.out, args.answers)


def _import(args: argparse.Namespace) -> None:
    if args.adapter is not None:
        from l2s_jax.export.peft import import_adapter

        import_adapter(args.hf, args.adapter, args.out, allow_non_finite=args.allow_non_finite)
    else:
        from l2s_jax.export.import_hf import import_hf

        import_hf(args.hf, args.out, allow_non_finite=args.allow_non_finite)
    _say(args, f"done: {args.out}")


def _export(args: argparse.Namespace) -> None:
    if args.adapter:
        if args.measured is not None:
            raise ValueError(
                "--measured goes into a whole model's card. Leave it or --adapter out."
            )
        from l2s_jax.export.peft import export_adapter

        export_adapter(args.checkpoint, args.out, push=args.push)
    else:
        from l2s_jax.export.hf import export_checkpoint

        export_checkpoint(args.checkpoint, args.out, push=args.push, evaluation=args.measured)
    _say(args, f"done: {args.out}")


def _list_export(args: argparse.Namespace) -> None:
    from l2s_jax.cli.output import json_lines
    from l2s_jax.export.hf import list_export
    from l2s_jax.export.hub import address

    if args.adapter:
        raise ValueError("--dry-run lists whole models only. Leave --dry-run or --adapter out.")
    sizes = list_export(args.checkpoint, args.out, push=args.push, evaluation=args.measured)
    hub = None if args.push is None else address(args.push)
    with json_lines(None) as write:
        for name, size in sizes.items():
            write({"file": name, "bytes": size, "folder": str(args.out), "hub": hub})
    where = f"{args.out}{'' if hub is None else f' and to {hub}'}"
    total = f"{len(sizes)} files, {sum(sizes.values()):,} bytes"
    _say(args, f"dry run, nothing written or sent: {total} would go to {where}")


def _plan(args: argparse.Namespace) -> int:
    if args.topology != "here":
        # The slice need not exist: whatever accelerator this machine has is left alone.
        os.environ["JAX_PLATFORMS"] = "cpu"
    from l2s_jax.plan.run import plan

    fits = plan(args.config, args.topology, args.set, searches=args.search, as_json=args.json)
    return 0 if fits else NO_FIT


def _report(args: argparse.Namespace) -> None:
    from l2s_jax.evaluation.curation_report import is_curation, write_curation_report
    from l2s_jax.evaluation.report import write_report

    write = write_curation_report if is_curation(args.workdir) else write_report
    _say(args, f"done: {write(args.workdir)}")


# ---- options ----


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="l2s",
        description="AutoL2S in JAX: models that know when a short chain of thought is enough.",
        epilog="L2S_TRACEBACK=1 in the environment shows where a mistake was noticed.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"l2s {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_demo(verbs)
    runs = {
        "curate": "long and short traces to verified items",
        "sft": "stage 1: supervised fine-tuning on curated items",
        "grpo": "stage 2: group-relative policy optimisation from the SFT model",
        "eval": "benchmarks in the asked modes",
    }
    for verb, does in runs.items():
        _add_run(verbs, verb, does)
    _add_plan(verbs)
    _add_generate(verbs)
    _add_files(verbs)
    return parser


def _add(verbs, name: str, does: str, act) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=does,
        description=does[0].upper() + does[1:] + ".",
        allow_abbrev=False,
    )
    parser.set_defaults(act=act)
    return parser


def _add_demo(verbs) -> None:
    demo = _add(verbs, "demo", "the whole method on the arithmetic world, on this machine", _demo)
    where = pathlib.Path("runs/demo")
    demo.add_argument(
        "--workdir", type=pathlib.Path, default=where, help="where results go [%(default)s]"
    )
    demo.add_argument("--quick", action="store_true", help="one seed, fewer questions and steps")


def _add_run(verbs, name: str, does: str) -> None:
    """Three options and no fourth: what a run can be told belongs to its config.

    `curate --audit` is no run: it measures the verifier and reads no config.
    """
    is_curate = name == "curate"
    run = _add(verbs, name, does, _curate if is_curate else _run)
    add, needed = run.add_argument, not is_curate
    add("--config", type=pathlib.Path, required=needed, help="Python file with get_config()")
    add("--workdir", type=pathlib.Path, required=needed, help="the run's own folder; resumes there")
    text = "override a config field"
    add("--set", action="extend", nargs="+", default=[], metavar="FIELD=VALUE", help=text)
    if is_curate:
        text = "instead of a run: check the verifier on JSON lines of gold, prediction, equivalent"
        add("--audit", type=pathlib.Path, metavar="LABELLED.jsonl", help=text)
        text = "folder of the audit's audit.json and audit.html (a worksheet of disputed pairs)"
        add("--out", type=pathlib.Path, metavar="DIR", help=text)


def _add_plan(verbs) -> None:
    does = "every program of a run compiled for a TPU slice, here: memory, time, does it fit"
    add = _add(verbs, "plan", does, _plan).add_argument
    add("--config", type=pathlib.Path, required=True, help="recipe of l2s sft, grpo or eval")
    text = "slice such as v5e:4x4, v5p:2x2x1 or 2*v5e:8x8; here: this machine [%(default)s]"
    add("--topology", default="here", help=text)
    text = "try slices (of a generation: --topology v5e) and settings until it fits"
    add("--search", action="store_true", help=text)
    add("--json", action="store_true", help="JSON lines to standard output, one a program")
    text = "override a config field"
    add("--set", action="extend", nargs="+", default=[], metavar="FIELD=VALUE", help=text)


def _add_generate(verbs) -> None:
    add = _add(verbs, "generate", "answers to a file of prompts", _generate).add_argument
    add("--model", required=True, help="Hugging Face folder or workdir of a run, or: arithmetic")
    text = "JSON lines: id and one of question, messages, prompt, token_ids"
    add("--prompts", type=pathlib.Path, required=True, help=text)
    add("--out", type=pathlib.Path, help="answers as JSON lines; without it, to standard output")
    text = "how the route is chosen; free inserts nothing, needs no triggers [%(default)s]"
    add("--mode", choices=MODES, default="auto", help=text)
    add("--samples", type=int, default=1, help="answers per prompt [%(default)s]")
    add("--temperature", type=float, default=1.0, help="0 is greedy [%(default)s]")
    add(
        "--top-p",
        type=float,
        default=1.0,
        help="draw from the likeliest tokens of this mass [%(default)s]",
    )
    add("--max-new-tokens", type=int, default=1024, help="bound on one answer [%(default)s]")
    add("--seed", type=int, default=0, help="same seed and prompt id, same answer [%(default)s]")
    text = "of weights and computation; without it, float32 weights, computed as they were trained"
    add("--dtype", choices=("float32", "bfloat16"), help=text)
    text = "chips that the weights are cut over, for a model too large for one [%(default)s]"
    add("--tensor", type=int, default=1, metavar="N", help=text)


def _add_files(verbs) -> None:
    path = pathlib.Path
    add = _add(verbs, "verify", "whether predictions equal their references", _verify).add_argument
    text = "JSON lines: gold and prediction (text, or null where there is no answer)"
    add("--in", dest="pairs", type=path, required=True, help=text)
    add("--out", type=path, help="verdicts as JSON lines; without it, to standard output")
    text = "strict: the last box, else the whole text; lenient: what a sentence states too"
    add("--answers", choices=("strict", "lenient"), default="strict", help=f"{text} [%(default)s]")

    add = _add(verbs, "import", "a Hugging Face folder to a checkpoint", _import).add_argument
    add("--hf", type=path, required=True, help="folder with config.json and safetensors")
    add("--out", type=path, required=True, help="the checkpoint's folder")

    text = "folder of an adapter in peft's format, to be merged into it"
    add("--adapter", type=path, metavar="DIR", help=text)
    text = "whatever values the weights have; NaN and infinities are refused otherwise"
    add("--allow-non-finite", action="store_true", help=f"take {text}")

    add = _add(verbs, "export", "a checkpoint to a Hugging Face folder", _export).add_argument
    add("--checkpoint", type=path, required=True, help="checkpoint, or workdir of a run")
    add("--out", type=path, required=True, help="the Hugging Face folder")
    add("--push", metavar="REPO", help="Hub repository (owner/name) to upload it to")
    text = "workdir of its l2s eval, whose results go into the model card"
    add("--measured", type=path, metavar="DIR", help=text)
    text = "the adapter alone, for peft, of a run that trained one"
    add("--adapter", action="store_true", help=f"write {text}")
    text = "list the files and their sizes as JSON lines; write and send nothing"
    add("--dry-run", dest="act", action="store_const", const=_list_export, help=text)

    add = _add(verbs, "report", "one self-contained HTML page on a run", _report).add_argument
    add("--workdir", type=path, required=True, help="workdir of curate, eval or demo")
