"""Bad input through the real command line: exit code 2, one message with its fix, nothing written.

`tests/cli` holds the mistakes that the command line itself notices (configs, overrides, options,
prompts); here are those that are noticed deep inside a run.
"""

import json
import pathlib
import re
import shutil

import pytest

from l2s_jax.cli.main import main
from l2s_jax.data.arithmetic import make_tokenizer
from l2s_jax.data.store import read_items
from l2s_jax.training.policy import save_policy
from tests.training.tiny import taught_policy, untaught_policy, write_curation

RECIPES = {
    "curate": """
from l2s_jax.curation.reject import CurateRun
from l2s_jax.data.sources import RecordedTraces

def get_config():
    source = RecordedTraces(path="traces.jsonl", long_teacher="L", short_teachers=None)
    return CurateRun(source=source, tokenizer="arithmetic", num_workers=1)
""",
    "sft": """
from l2s_jax.training.sft import CuratedItems, SftRun

def get_config():
    return SftRun(model="base", data=CuratedItems(path="curated"), batch_rows=8, num_steps=1)
""",
    "grpo": """
from l2s_jax.data.sources import JsonlProblems
from l2s_jax.objectives.presets import V2
from l2s_jax.training.grpo import GrpoRun

def get_config():
    problems = JsonlProblems(path="problems.jsonl")
    return GrpoRun(model="taught", problems=problems, preset=V2(), prompts_per_step=1)
""",
    "eval": """
from l2s_jax.data.sources import JsonlProblems
from l2s_jax.evaluation.benchmark import EvalRun
from l2s_jax.sampling.requests import SamplingConfig

def get_config():
    problems, sampling = JsonlProblems(path="problems.jsonl"), SamplingConfig(max_new_tokens=8)
    return EvalRun(model="taught", problems=problems, sampling=sampling)
""",
}
PROBLEM = {"id": "p1", "question": "3 +1", "answer": "4"}
TRACE = {"id": "t1", "qid": "p1", "question": "3 +1", "answer": "4", "model": "L", "kind": "long"}
LONG = TRACE | {"response": "3 +1 = 4 \\boxed{4}", "final_start": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> pathlib.Path:
    """Models that know the triggers (`taught`) and not (`base`), and curated items."""
    folder = tmp_path_factory.mktemp("folders")
    save_policy(folder / "taught", taught_policy())
    save_policy(folder / "base", untaught_policy())
    write_curation(folder / "curated")
    return folder


@pytest.fixture
def here(folders, tmp_path, monkeypatch) -> pathlib.Path:
    """A folder with recipes and faultless input, made the working directory."""
    shutil.copytree(folders, tmp_path, dirs_exist_ok=True)
    for verb, text in RECIPES.items():
        (tmp_path / f"{verb}.py").write_text(text)
    write_lines(tmp_path / "problems.jsonl", [PROBLEM])
    write_lines(tmp_path / "prompts.jsonl", [{"id": "a", "question": "3 +1"}])
    write_lines(tmp_path / "traces.jsonl", [LONG])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_lines(path: pathlib.Path, lines: list[dict | str]) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts))


def everything(folder: pathlib.Path) -> dict[str, int]:
    """Every path below `folder` with its size."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*")}


def refused(capsys, *argv: str) -> str:
    """The one message of a command that ends with exit code 2 and leaves its folder as it was."""
    before = everything(pathlib.Path())
    capsys.readouterr()
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    [message] = [line for line in captured.err.splitlines() if line.startswith("l2s ")]
    assert message.startswith(f"l2s {argv[0]}: ")
    assert everything(pathlib.Path()) == before
    return message


def run_refused(capsys, verb: str, *assignments: str) -> str:
    more = ["--set", *assignments] if assignments else []
    return refused(capsys, verb, "--config", f"{verb}.py", "--workdir", "runs/new", *more)


def generate_refused(capsys, *options: str) -> str:
    argv = ["generate", "--prompts", "prompts.jsonl", "--out", "answers.jsonl", *options]
    return refused(capsys, *argv)


def test_faultless_input_is_taken(here):
    """Otherwise the refusals below could have another reason than the one they show."""
    argv = ["generate", "--model", "taught", "--prompts", "prompts.jsonl", "--out", "answers.jsonl"]
    assert main([*argv, "--max-new-tokens", "2"]) == 0
    assert main(["curate", "--config", "curate.py", "--workdir", "runs/items"]) == 0


MISSING = [
    ("curate", "source.path=nowhere.jsonl", ["nowhere.jsonl", "no such file", "Give the path"]),
    ("curate", "tokenizer=nowhere", ["nowhere", "Give a Hugging Face model folder"]),
    ("sft", "model=nowhere", ["nowhere", "give a Hugging Face model folder"]),
    ("sft", "data.path=nowhere", ["nowhere", "manifest.json", "Run `l2s curate`"]),
    ("grpo", "model=nowhere", ["nowhere", "a run's workdir"]),
    ("grpo", "problems.path=nowhere.jsonl", ["nowhere.jsonl", "no such file"]),
    ("eval", "problems.path=nowhere.jsonl", ["nowhere.jsonl", "no such file"]),
    ("eval", "problems.exclude=nowhere", ["nowhere", "manifest.json", "Run `l2s curate`"]),
]


@pytest.mark.parametrize(("verb", "assignment", "parts"), MISSING)
def test_missing_files(verb, assignment, parts, here, capsys):
    message = run_refused(capsys, verb, assignment)
    for part in parts:
        assert part.lower() in message.lower()


@pytest.mark.parametrize("verb", ["generate", "export", "import"])
def test_missing_models(verb, here, capsys):
    argv = {
        "generate": ["--model", "nowhere", "--prompts", "prompts.jsonl", "--out", "answers.jsonl"],
        "export": ["--checkpoint", "nowhere", "--out", "hf"],
        "import": ["--hf", "nowhere", "--out", "back"],
    }[verb]
    assert "no folder nowhere" in refused(capsys, verb, *argv)


def test_missing_prompts(here, capsys):
    (here / "prompts.jsonl").unlink()
    assert "prompts.jsonl: no such file" in generate_refused(capsys, "--model", "taught")


FAULTY_LINES = [
    ('{"id": "x", "question": ', ["not JSON at column", "one whole JSON object"]),
    ("[1, 2]", ["holds a list", "looks like"]),
    ({"question": ""}, ["(x)", "question=''", "not empty"]),
    ({"question": "  \n"}, ["(x)", "question=", "not empty"]),
    ({"question": None}, ["(x)"]),
]


@pytest.mark.parametrize(("line", "parts"), FAULTY_LINES)
@pytest.mark.parametrize(
    ("verb", "file", "good"),
    [
        ("curate", "traces.jsonl", LONG),
        ("grpo", "problems.jsonl", PROBLEM),
        ("eval", "problems.jsonl", PROBLEM),
        ("generate", "prompts.jsonl", {"id": "a", "question": "3 +1"}),
    ],
)
def test_faulty_lines(verb, file, good, line, parts, here, capsys):
    faulty = line if isinstance(line, str) else good | {"id": "x", "qid": "x"} | line
    write_lines(here / file, [good, faulty])
    if verb == "generate":
        message = generate_refused(capsys, "--model", "taught")
    else:
        message = run_refused(capsys, verb)
    for part in [f"{file}:2", *parts]:
        assert part in message


def test_overlong_items_are_named(here, capsys):
    """Nothing is truncated, nor dropped unless asked for."""
    ids = {item.id for item in read_items(here / "curated" / "items")}
    message = run_refused(capsys, "sft", "row_length=30")
    assert "longer than row_length=30" in message
    assert "data.max_tokens=30" in message
    named = dict(re.findall(r"(\S+) \((\d+)\)", message))
    assert named and set(named) <= ids
    assert all(int(num_tokens) > 30 for num_tokens in named.values())
    message = run_refused(capsys, "sft", "data.max_tokens=5")
    assert f"data.max_tokens=5 leaves out {len(ids)} of {len(ids)} items" in message
    assert "Raise it" in message


def test_items_beyond_the_models_positions(here, capsys):
    config = json.loads((here / "base" / "model.json").read_text())
    (here / "base" / "model.json").write_text(json.dumps(config | {"max_positions": 30}))
    message = run_refused(capsys, "sft")
    assert "longer than the model's 30 positions" in message
    assert "take another model" in message


@pytest.mark.parametrize("verb", ["grpo", "eval"])
def test_questions_that_leave_no_room(verb, here, capsys):
    message = run_refused(capsys, verb, "sampling.max_new_tokens=128")
    assert "p1" in message
    assert "max_new_tokens=128" in message


@pytest.mark.parametrize("verb", ["grpo", "eval"])
def test_models_without_triggers(verb, here, capsys):
    message = run_refused(capsys, verb, "model=base")
    assert "l2s sft" in message


def test_a_tokenizer_that_lost_its_triggers(here, capsys):
    """The folder declares them, but somebody put the base model's tokenizer there."""
    make_tokenizer().hf.save_pretrained(here / "taught" / "tokenizer")
    message = generate_refused(capsys, "--model", "taught")
    assert "lacks the triggers <EASY>, <LONG>, <SHORT>, <ANSWER>" in message
    assert "l2s sft" in message
    assert "lacks the triggers" in run_refused(capsys, "grpo")


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("data.layout.nane=matched", ["data.layout.nane", "Did you mean name?"]),
        ("optim.peak_lr=fast", ["optim.peak_lr", '"fast"', "float", "1e-4"]),
        ("num_steps=1.5", ["num_steps=1.5", "expected int"]),
        ("data.layout.name=both", ["data.layout.name", '"both"', "matched"]),
        ("optim.warmup_steps=9", ["warmup_steps=9", "1 steps"]),
        ("batch_rows=3", ["batch_rows=3", "8 devices"]),
        ("batch_rows=800", ["fewer", "batch_rows"]),
    ],
)
def test_wrong_settings(assignment, parts, here, capsys):
    message = run_refused(capsys, "sft", assignment)
    for part in parts:
        assert part in message


def test_the_workdir_of_another_run(here, capsys):
    argv = ["curate", "--config", "curate.py", "--workdir", "runs/items"]
    assert main(argv) == 0
    message = refused(capsys, "sft", "--config", "sft.py", "--workdir", "runs/items")
    assert "another config" in message
    assert "another --workdir" in message
    message = refused(capsys, *argv, "--set", "num_candidates=3")
    assert "num_candidates: 8 → 3" in message
