"""The pages under docs/ and the README: what they tell a reader to type is typed here.

A fence's words say what is done with its block:

    bash            run in the page's own folder, one block after the other; ends with exit code 0
    bash fails      ends with exit code 2, and tells what the text block behind it quotes
    bash shown      not run (an accelerator, a network, real weights); its l2s lines are parsed
    python          run, in the same folder
    python shown    compiled only
"""

import dataclasses
import itertools
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap

import pytest

from l2s_jax.cli.main import _parser
from l2s_jax.config import load_config, override

REPOSITORY = pathlib.Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
KNOWN = {"", "text", "json", "yaml", "bash", "bash fails", "bash shown", "python", "python shown"}
RUN = {"bash", "bash fails", "python"}


@dataclasses.dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    words: str
    text: str
    line: int  # of the opening fence, from 1


def blocks_of(page: pathlib.Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found[2].strip(), textwrap.dedent(found[3]), text.count("\n", 0, found.start()) + 1)
        for found in FENCE.finditer(text)
    ]


def pages_with(words: set[str]) -> list[pathlib.Path]:
    return [page for page in PAGES if any(block.words in words for block in blocks_of(page))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_says_what_it_is(page):
    for block in blocks_of(page):
        assert block.words in KNOWN, f"{page}:{block.line}: {block.words!r}"
    assert page.read_text().count("```") == 2 * len(blocks_of(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", pages_with(RUN), ids=lambda page: page.name)
def test_what_a_page_runs(page, user_environment, tmp_path):
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    blocks = blocks_of(page)
    for block, behind in itertools.zip_longest(blocks, blocks[1:]):
        if block.words not in RUN:
            continue
        python = block.words == "python"
        command = [sys.executable, "-c"] if python else ["bash", "-euo", "pipefail", "-c"]
        done = subprocess.run(
            [*command, block.text],
            cwd=tmp_path,
            env=user_environment,
            capture_output=True,
            text=True,
            check=False,
        )
        where = f"{page.name}:{block.line}"
        want = 2 if block.words == "bash fails" else 0
        assert done.returncode == want, f"{where}: exit {done.returncode}\n{done.stderr[-3000:]}"
        if block.words == "bash fails":
            assert behind is not None and behind.words == "text", f"{where}: quote what it tells"
            assert plain(behind.text) in plain(done.stderr), f"{where}:\n{done.stderr[-3000:]}"


def plain(text: str) -> str:
    """On one line, however it was wrapped."""
    return " ".join(text.split())


@pytest.mark.parametrize("page", pages_with({"bash shown"}), ids=lambda page: page.name)
def test_what_a_page_shows_could_be_run(page):
    """The verb, its options, the recipe and the fields that it sets exist."""
    for block in blocks_of(page):
        if block.words != "bash shown":
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["l2s"]:
                continue
            try:
                args = _parser().parse_args(words[1:])
            except SystemExit:
                raise AssertionError(f"{page.name}:{block.line}: {line}") from None
            config = getattr(args, "config", None)
            if config is not None and (REPOSITORY / config).exists():
                override(load_config(REPOSITORY / config), getattr(args, "set", []))


@pytest.mark.parametrize("page", pages_with({"python shown"}), ids=lambda page: page.name)
def test_what_a_page_shows_in_python_compiles(page):
    for block in blocks_of(page):
        if block.words == "python shown":
            compile(block.text, f"{page.name}:{block.line}", "exec")
