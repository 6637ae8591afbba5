"""The page: whole, closed, escaped, and honest about what it lacks."""

import html.parser
import json
import re

import pytest

from l2s_jax.evaluation.report import write_report
from tests.evaluation.simulate import simulate_answers, write_jsonl, write_run

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Balance(html.parser.HTMLParser):
    """Raises on a tag that closes nothing; collects headings, texts and external references."""

    def __init__(self):
        super().__init__()
        self.stack, self.texts, self.tags, self.references = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data")]

    def handle_endtag(self, tag):
        assert self.stack, f"</{tag}> closes nothing"
        opened = self.stack.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data):
        self.texts.append(data)


def parse(path) -> Balance:
    parser = Balance()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert not parser.stack
    return parser


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    summary = write_run(workdir, num_per_level=6)
    return workdir, summary, write_report(workdir)


def test_is_balanced_and_refers_to_nothing_outside(run):
    _, _, path = run
    page = parse(path)
    assert all(reference.startswith("#") for reference in page.references)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://", re.sub(r'xmlns(:xlink)?="[^"]*"', "", source))
    assert "url(http" not in source and "@import" not in source


def test_says_what_was_measured(run):
    _, summary, path = run
    text = " ".join(parse(path).texts)
    for modes in summary["stages"].values():
        for entry in modes.values():
            assert f"{100 * entry['accuracy']:.1f} %" in text
            assert f"{entry['tokens']:.1f}" in text
    for word in ("held", "not held", "false-easy", "wrong", "cut off", "verbatim", "2 min 31 s"):
        assert word in text


def test_figures_of_every_section(run):
    _, _, path = run
    labels = re.findall(r'aria-label="([^"]*)"', path.read_text(encoding="utf-8"))
    assert len(labels) == 9  # two trade-offs, two by level, calibration, four stages of training
    assert len(set(labels)) >= 8


def test_hostile_text_is_text(tmp_path):
    write_run(tmp_path, num_per_level=2)
    evil = "<script>alert(1)</script>\"' & </pre></details>"
    answers = simulate_answers(num_per_level=2)
    changed = {"text": evil, "prediction": evil, "reference": evil, "question": evil}
    write_jsonl(tmp_path / "records" / "sft.jsonl", [a | changed for a in answers])
    summary = json.loads((tmp_path / "summary.json").read_text())
    summary["stages"][evil] = summary["stages"]["sft"]
    summary |= {"title": evil, "notes": [evil], "seconds": {evil: 1.0}}
    summary["bars"][0] |= {"name": evil, "note": evil, "value": evil, "bar": evil}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = parse(write_report(tmp_path))
    assert "script" not in page.tags
    assert sum(evil in text for text in page.texts) >= 8


def test_says_what_is_missing(tmp_path):
    summary = {"stages": {"mine": {"auto": {"accuracy": 0.5, "tokens": 10.0}}}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = " ".join(parse(write_report(tmp_path)).texts)
    for line in (
        "No stage was run in both auto and force-long.",
        "The summary names no bars.",
        "The questions of this run have no levels.",
        "No stage has records in all of auto, force-long and force-short",
        "This run trained only one of the two layouts.",
        "No records:",
        "No training metrics:",
        "No times recorded.",
    ):
        assert line in text


def test_nothing_is_left_beside(run):
    workdir, _, path = run
    assert path == workdir / "report.html"
    assert {p.name for p in workdir.iterdir()} == {
        "metrics",
        "records",
        "report.html",
        "summary.json",
    }


def test_same_run_same_page(run):
    workdir, _, path = run
    before = path.read_bytes()
    assert write_report(workdir).read_bytes() == before


def test_missing_run_is_a_users_mistake(tmp_path):
    with pytest.raises(ValueError, match=r"not found.*l2s eval"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        write_report(tmp_path / "nowhere")


def test_long_completion_says_what_is_cut(tmp_path):
    write_run(tmp_path, num_per_level=1)
    answers = [a | {"text": "x" * 7000} for a in simulate_answers(num_per_level=1)]
    write_jsonl(tmp_path / "records" / "sft.jsonl", answers)
    assert "[1000 more characters in the records]" in write_report(tmp_path).read_text("utf-8")
