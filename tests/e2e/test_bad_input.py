"""Bad input through the real command line: exit code 2, one message with its fix, nothing written.

`tests/cli` holds the mistakes that the command line itself notices (configs, overrides, options,
prompts); here are those that are noticed deep inside a run.
"""

import html
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
from l2s_jax.data.recorded import RecordedTraces

def get_config():
    source = RecordedTraces(path="traces.jsonl", long_teacher="L", short_teachers=None)
    return CurateRun(source=source, tokenizer="arithmetic", num_workers=1)
""",
    "sft": """
from l2s_jax.training.curated import CuratedItems
from l2s_jax.training.sft import SftRun

def get_config():
    return SftRun(model="base", data=CuratedItems(path="curated"), batch_rows=8, num_steps=1)
""",
    "grpo": """
from l2s_jax.data.sources import JsonlProblems
from l2s_jax.objectives.presets import v2
from l2s_jax.training.grpo import GrpoRun

def get_config():
    problems = JsonlProblems(path="problems.jsonl")
    return GrpoRun(model="taught", problems=problems, preset=v2(), prompts_per_step=1)
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


def other_traces(id: str, **more) -> list[dict]:
    """A long and a short trace on a question of their own."""
    fixed = {"qid": id, "question": f"{id} of 3 +1"}
    short = TRACE | fixed | {"id": f"{id}-s", "model": "S", "kind": "short"}
    return [LONG | fixed | {"id": id}, short | {"response": "So \\boxed{4}."} | more]


def faulty_traces(path: pathlib.Path) -> list[tuple[int, str]]:
    """A file with every fault that data files are known to have; lines and what is said of each."""
    good, torn, boxless = other_traces("p2"), other_traces("p3"), other_traces("p4")
    boxless[1]["response"] = "So \\boxed{4."  # never closes: a wrong candidate, not a bad line
    marked = (b"\xef\xbb\xbf" + json.dumps(torn[0]).encode(), "byte-order mark")
    lines = [marked[0], *(json.dumps(row).encode() for row in (*good, *boxless))]
    bad = [
        (json.dumps(torn[0]).encode().replace(b"p3", b"p\0"), "NUL byte"),
        (json.dumps(torn[0]).encode().replace(b"3 +1", b"\xff"), "not UTF-8"),
        (json.dumps(torn[0] | {"level": float("nan")}).encode(), "NaN is not a JSON number"),
        (json.dumps(torn[0]).replace('"4"', "1e999").encode(), "answer=inf"),
        (json.dumps(torn[0] | {"answer": "nan"}).encode(), "is no answer"),
        (json.dumps(torn[0] | {"answer": "\\frac{4}{"}).encode(), "does not parse"),
        (json.dumps(good[0]).encode(), "id 'p2' was used"),
        (json.dumps(good[0] | {"id": "x", "answer": "5"}).encode(), "differ from an earlier line"),
        (b'{"id": "' + b"x" * (100 << 20) + b'"}', "longer than 32 MiB"),
        (json.dumps(torn[0]).encode()[:40], "ends inside this line"),
    ]
    path.write_bytes(b"\n".join([*lines, *(line for line, _ in bad)]))
    told = [(number, says) for number, (_, says) in enumerate(bad, start=len(lines) + 1)]
    return [(1, marked[1]), *told]


def test_bad_lines_of_traces_are_named_and_the_rest_is_curated(here, capsys):
    bad = faulty_traces(here / "traces.jsonl")
    argv = ["curate", "--config", "curate.py"]
    assert main([*argv, "--workdir", "runs/report"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and f"{len(bad)} lines were left out" in error
    assert "bad_lines=skip" in error
    page = html.unescape((here / "runs/report/report.html").read_text())
    lines = (here / "runs/report/bad_lines.jsonl").read_text().splitlines()
    told = [json.loads(line)["message"] for line in lines]
    for (number, says), message in zip(bad, told, strict=True):
        assert message.startswith(f"traces.jsonl:{number}") and says in message
        assert message in error and message in page
    easy = {item.id: item.is_easy for item in read_items(here / "runs/report/items")}
    assert easy == {"p2": True, "p4": False}
    # Accepted beforehand, the same is done, and it is no mistake.
    assert main([*argv, "--workdir", "runs/skip", "--set", "bad_lines=skip"]) == 0
    assert f"{len(bad)} bad lines left out" in capsys.readouterr().err
    assert read_items(here / "runs/skip/items") == read_items(here / "runs/report/items")


def test_traces_without_a_single_good_line(here, capsys):
    write_lines(here / "traces.jsonl", ["{", "[]"])
    message = run_refused(capsys, "curate")
    assert "no line can be used; the first: traces.jsonl:1: not JSON" in message


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
