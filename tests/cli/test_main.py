"""Exit codes and messages of `l2s`: what a mistake costs, and that it names its own cure."""

import argparse
import json
import pathlib
import subprocess
import sys

import pytest

from l2s_jax.cli import main as cli
from l2s_jax.cli.main import main

CURATE = """
from l2s_jax.curation.reject import CurateRun
from l2s_jax.data.arithmetic import ArithmeticProblems, ArithmeticTeachers

def get_config():
    problems = ArithmeticProblems(split="train", num_per_level=2, seed=0)
    return CurateRun(source=ArithmeticTeachers(problems=problems), tokenizer=None, num_workers=1)
"""

RUN_VERBS = ("curate", "sft", "grpo", "eval")


@pytest.fixture
def config(tmp_path) -> pathlib.Path:
    path = tmp_path / "curate.py"
    path.write_text(CURATE)
    return path


def refused(capsys, *argv: object) -> str:
    """The one message of a command that ends with exit code 2."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    [message] = [line for line in captured.err.splitlines() if line.startswith("l2s ")]
    assert message.startswith(f"l2s {argv[0]}: ")
    return message


def verbs() -> dict[str, argparse.ArgumentParser]:
    actions = cli._parser()._actions
    [subparsers] = [a for a in actions if isinstance(a, argparse._SubParsersAction)]
    return dict(subparsers.choices)


def test_the_verbs_are_these():
    assert set(verbs()) == {*RUN_VERBS, *"demo generate verify import export plan report".split()}


@pytest.mark.parametrize("verb", RUN_VERBS)
def test_runs_take_three_options_and_no_more(verb):
    """What a run can be told belongs to its config, where it is typed and saved."""
    options = {o for action in verbs()[verb]._actions for o in action.option_strings}
    audit = {"--audit", "--out"} if verb == "curate" else set()  # no run: it has no config
    assert options - {"-h", "--help"} == {"--config", "--workdir", "--set"} | audit


@pytest.mark.parametrize("verb", [None, *RUN_VERBS, "generate", "verify", "demo"])
def test_help_goes_to_standard_output(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"] if verb else ["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: l2s")


@pytest.mark.parametrize("argv", [[], ["trane"], ["sft", "--config", "x"], ["demo", "--fast"]])
def test_wrong_usage(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage: l2s" in capsys.readouterr().err


def test_a_run_resumes_with_its_config_and_refuses_another(config, tmp_path, capsys):
    workdir = tmp_path / "run"
    common = ["curate", "--config", str(config), "--workdir", str(workdir), "--set"]
    assert main([*common, "num_candidates=2"]) == 0
    assert capsys.readouterr().out == ""  # all that a person reads goes to standard error
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["num_candidates"] == 2
    assert main([*common, "num_candidates=2"]) == 0
    message = refused(capsys, *common, "num_candidates=3")
    assert "num_candidates: 2 → 3" in message
    assert "another --workdir" in message
    assert json.loads((workdir / "config.json").read_text()) == saved


@pytest.mark.parametrize(
    ("assignments", "parts"),
    [
        (["num_candidate=2"], ["num_candidate", "Did you mean num_candidates?", "num_workers"]),
        (["num_candidates=two"], ["num_candidates", '"two"', "expected int", "=8"]),
        (["source.problems.seed=x"], ["source.problems.seed", '"x"', "int"]),
        (["source.problems.split=dev"], ["split", '"dev"', '"train", "test"']),
        (["num_candidates=-1"], ["num_candidates=-1", "0 takes one"]),
        (["num_candidates"], ["num_candidates", "field=value"]),
        (["num_workers=1", "--set", "num_workers=2"], ["num_workers", "set twice"]),
    ],
)
def test_wrong_overrides(assignments, parts, config, tmp_path, capsys):
    workdir = tmp_path / "run"
    argv = ["curate", "--config", config, "--workdir", workdir, "--set", *assignments]
    message = refused(capsys, *argv)
    for part in parts:
        assert part in message
    assert not workdir.exists()


def test_missing_and_faulty_config_files(tmp_path, capsys):
    argv = ["sft", "--workdir", tmp_path / "run", "--config", tmp_path / "sft.py"]
    assert "sft.py not found" in refused(capsys, *argv)
    (tmp_path / "sft.py").write_text("def get_config():\n    return SftRun()\n")
    message = refused(capsys, *argv)
    assert "sft.py:2" in message
    assert "SftRun" in message
    assert not (tmp_path / "run").exists()


def test_a_config_of_another_verb_is_told_its_own(config, tmp_path, capsys):
    message = refused(capsys, "sft", "--config", config, "--workdir", tmp_path / "run")
    assert "CurateRun" in message
    assert "Use l2s curate" in message
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_start_gives_its_workdir_back(tmp_path, capsys):
    """The corrected command would otherwise meet a folder of the faulty config."""
    traces = tmp_path / "traces.jsonl"
    text = f"""
from l2s_jax.curation.reject import CurateRun
from l2s_jax.data.recorded import RecordedTraces

def get_config():
    source = RecordedTraces(path={str(traces)!r}, long_teacher="a", short_teachers=None)
    return CurateRun(source=source, tokenizer={str(tmp_path)!r})
"""
    (tmp_path / "curate.py").write_text(text)
    argv = ["curate", "--config", tmp_path / "curate.py", "--workdir", tmp_path / "run"]
    refused(capsys, *argv)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    refused(capsys, *argv)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def failing_with(error: BaseException) -> argparse.Namespace:
    def act(args):
        raise error

    return argparse.Namespace(verb="report", act=act)


def test_a_fault_of_ours_shows_its_traceback():
    """Only a user's mistakes are put into one line; the rest must be found."""
    with pytest.raises(RuntimeError, match="ours"):
        cli.exit_code(failing_with(RuntimeError("ours")))


def test_a_traceback_can_be_had(monkeypatch):
    monkeypatch.setenv("L2S_TRACEBACK", "1")
    with pytest.raises(ValueError, match="theirs"):
        cli.exit_code(failing_with(ValueError("theirs")))


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 1), (ValueError("x"), 2)]
)
def test_exit_codes(error, code, capfd):
    assert cli.exit_code(failing_with(error)) == code


def test_verify_writes_a_verdict_per_line(tmp_path, capsys):
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "verdicts.jsonl"
    wanted = [("7", "7.0", True), ("7", "8", False), ("7", None, False)]
    pairs.write_text("".join(json.dumps({"gold": g, "prediction": p}) + "\n" for g, p, _ in wanted))
    assert main(["verify", "--in", str(pairs), "--out", str(out)]) == 0
    assert capsys.readouterr().out == ""
    verdicts = [json.loads(line) for line in out.read_text().splitlines()]
    assert [v["equivalent"] for v in verdicts] == [equal for *_, equal in wanted]
    assert all(set(v) == {"equivalent", "reason", "seconds"} for v in verdicts)
    assert main(["verify", "--in", str(pairs)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(wanted)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"gold": "7"}', ["prediction"]),
        ('{"gold": 7, "prediction": "7"}', ["gold=7", "quotes"]),
        ('{"gold": null, "prediction": "7"}', ["gold=None"]),
        ('{"gold": "7", ', ["not JSON"]),
        ("[]", ["object"]),
    ],
)
def test_verify_names_the_faulty_line_and_decides_the_rest(line, parts, tmp_path, capsys):
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "verdicts.jsonl"
    good = '{"gold": "7", "prediction": "7"}\n'
    pairs.write_text(good + line + "\n" + good)
    assert main(["verify", "--in", str(pairs), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    for part in ["1 line was left out", f"{pairs}:2", *parts]:
        assert part in told
    verdicts = [json.loads(line) for line in out.read_text().splitlines()]
    assert [v["reason"] for v in verdicts] == ["same-text", "bad-input", "same-text"]


def test_verify_reads_sentences_only_where_asked(tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"gold": "5", "prediction": "The answer is 5."}\n')
    for answers, equal in (("strict", False), ("lenient", True)):
        assert main(["verify", "--in", str(pairs), "--answers", answers]) == 0
        assert json.loads(capsys.readouterr().out)["equivalent"] is equal


def test_an_audit_reads_no_config_and_a_run_writes_to_no_out(tmp_path, capsys):
    labelled, out = tmp_path / "labelled.jsonl", tmp_path / "audit"
    labelled.write_text(
        '{"id": "a", "gold": "7", "prediction": "7", "equivalent": true}\n'
        '{"id": "a", "gold": "7", "prediction": "8", "equivalent": false}\n'
        '{"id": "b", "gold": "<7>", "prediction": "<script>", "equivalent": true}\n'
    )
    assert main(["curate", "--audit", str(labelled), "--out", str(out)]) == 2
    assert f"{labelled}:2: id 'a' was used on line 1" in capsys.readouterr().err
    summary = json.loads((out / "audit.json").read_text())
    assert summary["figures"]["all"]["num_pairs"] == 2
    assert summary["disputed"] == ["b"]
    assert "&lt;script&gt;" in (out / "audit.html").read_text()
    assert "--out DIR" in refused(capsys, "curate", "--audit", labelled)
    assert "--workdir" in refused(capsys, "curate", "--out", out)
    assert "--config" in refused(capsys, "curate")


def test_missing_files_and_folders(tmp_path, capsys):
    missing = tmp_path / "none.jsonl"
    assert str(missing) in refused(capsys, "verify", "--in", missing)
    missing.write_text('{"gold": "7", "prediction": "7"}\n')
    message = refused(capsys, "verify", "--in", missing, "--out", tmp_path / "a" / "b.jsonl")
    assert f"{tmp_path / 'a'} not found" in message
    assert "is a folder" in refused(capsys, "verify", "--in", missing, "--out", tmp_path)


def test_the_program_starts_quickly_and_without_jax(tmp_path):
    """A real process: `python -m l2s_jax`, its exit code, and what it did not import."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['l2s', 'sft', '--config', 'none.py', '--workdir', 'run']\n"
        "try:\n"
        "    runpy.run_module('l2s_jax', run_name='__main__')\n"
        "except SystemExit as ended:\n"
        "    assert 'jax' not in sys.modules and 'numpy' not in sys.modules\n"
        "    sys.exit(ended.code)\n"
    )
    root = str(pathlib.Path(__file__).parents[2])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "l2s sft: config file none.py not found. Give a Python file with get_config().\n"
    )
