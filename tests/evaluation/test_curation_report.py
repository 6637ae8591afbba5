import json
import pathlib
from html.parser import HTMLParser

import pytest

from l2s_jax.cli.main import main
from l2s_jax.config import to_json
from l2s_jax.curation.bill import Bill
from l2s_jax.curation.reject import CurateRun, run
from l2s_jax.data.arithmetic import ArithmeticProblems, ArithmeticTeachers
from l2s_jax.evaluation.curation_report import MAX_LISTED, is_curation, write_curation_report


class Page(HTMLParser):
    """The text of a page, and what it would fetch."""

    def __init__(self, text: str):
        super().__init__()
        self.words: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in ("meta", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("curated")
    problems = ArithmeticProblems(num_per_level=40)
    source = ArithmeticTeachers(problems=problems)
    cfg = CurateRun(source=source, tokenizer=None, min_regular_share=0.4)
    run(cfg, folder)
    (folder / "config.json").write_text(json.dumps(to_json(cfg)))
    return folder


def test_the_page_says_what_the_files_say(workdir):
    assert is_curation(workdir)
    page = Page(write_curation_report(workdir).read_text())
    summary = json.loads((workdir / "summary.json").read_text())
    steps = summary["acceptance_by_teacher"]["steps"]
    row = f"steps {steps['tried']} {steps['right']} {100 * steps['share']:.1f} %"
    assert row in page.text
    for reason, number in summary["rejections"].items():
        assert reason in page.text and f"{number:,}" in page.text
    outcomes = [summary["outcomes"][name] for name in ("easy", "regular", "kept-regular")]
    assert sum(outcomes) == summary["num_items"] and outcomes[2] > 0
    for path in ("long", "short"):
        assert f"{summary['tokens'][path]['mean']:,.0f}" in page.text
    assert "num_per_level" in page.text  # the config
    assert not [target for target in page.fetched if not target.startswith("#")]


def test_report_of_a_curation_by_the_command_line(workdir, capsys):
    (workdir / "report.html").unlink(missing_ok=True)
    assert main(["report", "--workdir", str(workdir)]) == 0
    assert "Acceptance by teacher" in (workdir / "report.html").read_text()


def test_hits_and_bad_lines_are_listed_and_escaped(workdir, tmp_path):
    for name in ("summary.json", "questions.jsonl"):
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    hit = {"id": "<b>", "rule": "run", "other": "o", "where": "bench", "similarity": 0.5}
    hit |= {"question": "<i>?", "other_question": "&", "references_differ": False}
    lines = [json.dumps(hit | {"id": f"<b>{i}"}) for i in range(MAX_LISTED + 2)]
    (tmp_path / "hygiene.jsonl").write_text("\n".join(lines))
    (tmp_path / "bad_lines.jsonl").write_text(json.dumps({"message": "f:3: <NUL>"}))
    text = write_curation_report(tmp_path).read_text()
    page = Page(text)
    assert "<b>0" not in text and "<b>0 is out (run, 0.50) for o of bench" in page.text
    assert "2 more are in hygiene.jsonl" in page.text
    assert "f:3: <NUL>" in page.text


def test_what_asked_teachers_cost(workdir, tmp_path):
    bill = Bill("short: terse", total=1200, price_in=2.0, price_out=4.0)
    bill.new, bill.reused, bill.unusable, bill.missing = 1000, 195, 2, 3
    bill.prompt_tokens, bill.completion_tokens, bill.price = 5000, 7000, 0.038
    (tmp_path / "teachers.json").write_text(json.dumps([bill.record()]))
    for name in ("summary.json", "questions.jsonl"):
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    page = Page(write_curation_report(tmp_path).read_text())
    assert "short: terse 1,200 1,000 195 0 5 5,000 + 7,000 0.038" in page.text
    assert "asked cost" not in Page(write_curation_report(workdir).read_text()).text


def test_a_folder_without_a_curation(tmp_path):
    assert not is_curation(tmp_path)
    (tmp_path / "summary.json").write_text('{"stages": {}}')
    assert not is_curation(tmp_path)
    (tmp_path / "summary.json").write_text("[]")
    assert not is_curation(tmp_path)
