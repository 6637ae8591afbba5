"""The second reader against Python's own arithmetic, and its independence of the first."""

import ast
import json
import math
import pathlib
import random

import pytest

from l2s_jax.verify import second
from l2s_jax.verify.second import second_opinion

SAME, DIFFERENT, UNSURE = True, False, None


@pytest.mark.parametrize(
    ("gold", "prediction", "says"),
    [
        ("4", "4.0", SAME),
        ("1,234", "1234", SAME),
        (r"1\frac{1}{2}", "3/2", SAME),
        (r"\frac12", "0.5", SAME),
        ("1/3", "0.333333333333", DIFFERENT),
        ("11111111100", "11111111101", DIFFERENT),  # exact, whatever the tolerance
        (r"\frac{\sqrt{8}}{2}", r"\sqrt2", SAME),
        (r"2\sin x\cos x", r"\sin(2x)", SAME),
        ("(x+1)^2", "x^2+2x+1", SAME),
        ("(x+1)^2", "x^2+2x+2", DIFFERENT),
        (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}", SAME),
        (r"1 \pm \sqrt{19}", r"1+\sqrt{19}", DIFFERENT),
        ("1,2", "2,1", SAME),
        ("(1,2)", "(2,1)", DIFFERENT),
        ("(1,2)", "[1,2]", DIFFERENT),
        ("(1,2]", "(1,2)", DIFFERENT),
        (r"(-\infty, 2]", r"\left(-\infty,2\right]", SAME),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(1,2)", SAME),
        (r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}", "(1,0,0,1)", DIFFERENT),
        (r"\text{Evelyn}", "Evelyn", SAME),
        (r"\text{even}", "neve", DIFFERENT),
        (r"864 \mbox{ inches}^2", "864", SAME),
        (r"90^\circ", "90", SAME),
        ("x = 5", "5", SAME),
        ("5", "-5", DIFFERENT),
        ("x < 3", "x < 4", UNSURE),
        (r"\log 2", r"\log_{10} 2", UNSURE),
        (r"9^{9^{9^{9}}}", "1", UNSURE),
        ("1000000!", "1", UNSURE),
        ("(" * 5000 + "1" + ")" * 5000, "1", UNSURE),
        (r"\frac{1}{0}", "1", UNSURE),
        ("5", "", UNSURE),
    ],
)
def test_opinions(gold, prediction, says):
    assert second_opinion(gold, prediction) is says


def test_matches_python_arithmetic():
    draw = random.Random(0)
    for _ in range(500):
        a, b, c = (draw.randrange(1, 30) for _ in range(3))
        latex = rf"\frac{{{a}-\sqrt{{{b}}}}}{{{c}}} + {a}^{{2}} \cdot {b}"
        value = (a - math.sqrt(b)) / c + a**2 * b
        assert second_opinion(latex, f"{value:.14f}") is True
        assert second_opinion(latex, f"{value * (1 + 1e-7):.14f}") is False


def test_noise_is_survived():
    draw = random.Random(1)
    pieces = [
        *r"\frac \sqrt \text{ \{ \pm \begin{pmatrix} \\ & { } [ ] ( ) | ^ _ ! , ;".split(),
        "x",
    ]
    for _ in range(3000):
        text = "".join(draw.choices([*pieces, "7", "-", " and "], k=draw.randrange(1, 14)))
        assert second_opinion(text, "7") in (True, False, None)


def test_shares_nothing_with_the_first():
    tree = ast.parse(pathlib.Path(second.__file__).read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {getattr(n, "module", None) or n.names[0].name for n in imports}
    assert names == {"cmath", "math", "random", "re", "collections.abc", "fractions"}


def test_real_answers(shared_data):
    lines = (shared_data / "equivalence" / "real_dev.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    wrong, unsure = [], 0
    for record in records:
        answer = record["prediction"].removeprefix(r"\boxed{").removesuffix("}")
        if answer == record["prediction"].removeprefix(r"\boxed{"):
            answer = record["prediction"]
        says = second_opinion(record["gold"], answer)
        unsure += says is None
        wrong += [record["id"]] if says not in (None, record["equivalent"]) else []
    assert not wrong
    assert unsure < 0.1 * len(records)
