r"""Algebra on answers: math-verify reads them, and numbers at random points have a veto.

Lives here: the only calls of math-verify and sympy, and the judge that knows algebra. Not here: the
process that this runs in (`verify/worker.py`); it has no time limit of its own.

Why a veto: math-verify rounds both sides to six decimals, so that 1/2^99 equals 1/2^98, and takes
R for r. Two formulas are equal here only where they agree at several points to 20 digits; where
numbers cannot be had (sums over an index, functions without a rule), math-verify's word counts.
Where it says no and the numbers say yes at every point (sqrt(-1) and i), the numbers are believed:
each agreement leaves a chance of 1e-20.
"""

import functools
import random
import re
from typing import Any

import sympy
from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.relational import Relational

from l2s_jax.verify.shapes import Group, Matrix, Relation, Union, Value

DIGITS = 30
AGREEMENT = sympy.Float("1e-20", DIGITS)  # relative
NUM_POINTS = 4  # every other one of either sign
NUM_STEP_POINTS = 24  # for floors and remainders, which agree at many points, and further out
MAX_CHARACTERS = 3000

_LETTERS = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]")
_NONSENSE = re.compile(  # what the reader would take for a product or a sum
    r"(?<![\\a-zA-Z{])[a-zA-Z]{4,}(?![a-zA-Z}])|\d\s+\d|\d\s*_|\.\.\.|\\text|[^\x20-\x7e]"
)
_STEPS = (sympy.floor, sympy.ceiling, sympy.Mod)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{\w+\}")
_FUNCTION_WORDS = re.compile(
    r"(?<![\\a-zA-Z])(arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|sinh|cosh|log|ln|exp|max|min|gcd)"
    r"(?![a-zA-Z])"
)


class Symbolic:
    """The judge of `compare.same` that knows algebra."""

    def values(self, gold: str, prediction: str) -> bool | None:
        if not _letters_agree(gold, prediction):
            return False
        one, other = read_formula(gold), read_formula(prediction)
        if one is None or other is None:
            return False
        return same_formula(one, other)

    def relations(self, gold: Relation, prediction: Relation) -> bool | None:
        if len(gold.ops) > 1 or len(prediction.ops) > 1:
            return self.sets(gold, prediction)
        one, other = _one_sided(gold), _one_sided(prediction)
        if one is None or other is None or one[0] != other[0]:
            return False
        ratio = _constant_ratio(one[1], other[1])
        return ratio is not None and (one[0] in ("=", r"\ne") or bool(ratio > 0))

    def sets(self, gold, prediction) -> bool | None:
        try:
            one, other = _set_of(gold), _set_of(prediction)
            if one is None or other is None:
                return False
            if isinstance(one, sympy.MatrixBase | sympy.MatrixExpr):
                return bool(sympy.Matrix(one) == sympy.Matrix(other))
            difference = sympy.SymmetricDifference(one, other)
            return bool(one == other or difference.simplify() == sympy.S.EmptySet)
        except (TypeError, ValueError, NotImplementedError, AttributeError, KeyError):
            return False


@functools.lru_cache(maxsize=4096)
def read_formula(text: str) -> sympy.Basic | None:
    """What math-verify reads in a formula; None where it is none."""
    text = _FUNCTION_WORDS.sub(r"\\\1", text)
    text = re.sub(r"_\s*\{\s*\\([a-z]+)\s*\}", r"_{\1}", text)  # R_{\odot}: any name will do
    if len(text) > MAX_CHARACTERS or _NONSENSE.search(_ENVIRONMENT.sub("#", text)):
        return None
    text = re.sub(r"\\[bp]mod(?![a-z])", r"\\mod", text)
    found = parse(
        f"${text}$",
        [LatexExtractionConfig()],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]  # None is documented
    )
    formula = next((one for one in found if isinstance(one, sympy.Basic | sympy.MatrixBase)), None)
    return None if formula is None else _exact(formula)


def _exact(formula) -> Any:
    """With i as the imaginary unit, and decimals as fractions: 0.333 is not 1/3."""
    if not isinstance(formula, sympy.Basic):
        return formula
    swaps: dict = {float_: sympy.Rational(str(float_)) for float_ in formula.atoms(sympy.Float)}
    swaps |= {s: sympy.I for s in formula.free_symbols if getattr(s, "name", "") == "i"}
    return formula.xreplace(swaps) if swaps else formula


def same_formula(one, other) -> bool:
    """Whether two formulas are equal: the numbers' word, else math-verify's."""
    if isinstance(one, sympy.MatrixBase | sympy.MatrixExpr) or not isinstance(one, sympy.Expr):
        return bool(verify([one], [other], timeout_seconds=None))
    if not isinstance(other, sympy.Expr):
        return False
    if one == other:
        return True
    numbers = agree_at_points(one, other)
    return bool(verify([one], [other], timeout_seconds=None)) if numbers is None else numbers


def agree_at_points(one: sympy.Expr, other: sympy.Expr) -> bool | None:
    """Whether both have the same value wherever they were tried; None where they have none."""
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    tried = 0
    steps = one.has(*_STEPS) or other.has(*_STEPS)
    for point in range((NUM_STEP_POINTS if steps else NUM_POINTS) if symbols else 1):
        at = {symbol: _draw(str(symbol), point) for symbol in symbols}
        values = [_number(formula, at) for formula in (one, other)]
        if None in values:
            continue
        real = all(abs(sympy.im(value)) < AGREEMENT for value in values)
        if not real and any(value < 0 for value in at.values()):
            continue  # roots and logarithms of negative numbers: which branch was meant?
        tried += 1
        size = max(abs(values[0]), abs(values[1]))
        if abs(values[0] - values[1]) > AGREEMENT * size:
            return False
    return True if tried else None


def _draw(name: str, point: int) -> sympy.Expr:
    value = random.Random(f"{name} at {point}").randrange(10**6, 10**7 * (1 + point // NUM_POINTS))
    sign = -1 if point % 2 and value % 2 else 1
    return sympy.Rational(sign * value, 10**6)


def _number(formula: sympy.Expr, at: dict) -> Any:
    """The value at a point; None where there is none."""
    try:
        value = formula.subs(at).doit() if at else formula.doit()
        value = value.evalf(DIGITS)
    except (TypeError, ValueError, AttributeError, NotImplementedError, ZeroDivisionError):
        return None
    is_number = isinstance(value, sympy.Expr) and value.is_number and value.is_finite is not False
    return value if is_number and value.as_real_imag()[0].is_Float is not None else None


def _letters_agree(gold: str, prediction: str) -> bool:
    """False where the two differ in a letter's case only: R is not r."""
    one, other = (
        {letter for letter in _LETTERS.findall(text) if len(letter) == 1}
        for text in (gold, prediction)
    )
    return {x.lower() for x in one} != {x.lower() for x in other} or one == other


def _one_sided(relation: Relation) -> tuple[str, sympy.Expr] | None:
    r"""(op, left minus right) with op one of =, \ne, < and \le."""
    left, right = map(read_formula, relation.sides)
    if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
        return None
    op = relation.ops[0]
    if op in (">", r"\ge"):
        return {">": "<", r"\ge": r"\le"}[op], right - left
    return (op, left - right) if op in ("=", r"\ne", "<", r"\le", r"\equiv") else None


def _constant_ratio(one: sympy.Expr, other: sympy.Expr):
    """The number by which `one` is `other` multiplied; None where there is none."""
    ratios = []
    for point in range(NUM_POINTS):
        at = {s: _draw(str(s), point) for s in one.free_symbols | other.free_symbols}
        values = [_number(formula, at) for formula in (one, other)]
        if None in values or values[1] == 0 or not at:
            return None
        ratios.append(values[0] / values[1])
    same = all(abs(ratio - ratios[0]) <= AGREEMENT * abs(ratios[0]) for ratio in ratios)
    return ratios[0] if same and ratios[0].is_real and ratios[0] != 0 else None


_BRACKETS = {"()": (True, True), "(]": (True, False), "[)": (False, True), "[]": (False, False)}


def _set_of(node):
    """A sympy set, or a matrix, of a node; None where it is neither."""
    if isinstance(node, Union):
        if node.parts:
            parts = [_set_of(part) for part in node.parts]
            return None if None in parts else sympy.Union(*parts)
        formula = read_formula(node.text)
        return formula if isinstance(formula, sympy.Set) else None
    if isinstance(node, Group) and node.kind in _BRACKETS and len(node.items) == 2:
        ends = [_formula_of(item) for item in node.items]
        return None if None in ends else sympy.Interval(ends[0], ends[1], *_BRACKETS[node.kind])
    if isinstance(node, Group) and node.kind in ("set", "list"):
        items = [_formula_of(item) for item in node.items]
        return None if None in items else sympy.FiniteSet(*items)
    if isinstance(node, Relation):
        return _solutions(node)
    if isinstance(node, Matrix):
        rows = [[_formula_of(cell) for cell in row] for row in node.rows]
        return None if any(None in row for row in rows) else sympy.Matrix(rows)
    formula = _formula_of(node)
    return formula.doit() if isinstance(formula, sympy.MatrixExpr | sympy.MatrixBase) else None


def _formula_of(node):
    return read_formula(node.text) if isinstance(node, Value) else None


def _solutions(relation: Relation) -> sympy.Set | None:
    r"""The real numbers that satisfy inequalities in one variable, and its exclusions x \ne a."""
    read = map(read_formula, relation.sides)
    sides = [side for side in read if isinstance(side, sympy.Expr)]
    if len(sides) < len(relation.sides):
        return None
    symbols = set().union(*(side.free_symbols for side in sides))
    if len(symbols) != 1:
        return None
    real = {symbol: sympy.Symbol("x", real=True) for symbol in symbols}
    sides = [side.xreplace(real) for side in sides]
    kinds = {"<": sympy.Lt, r"\le": sympy.Le, ">": sympy.Gt, r"\ge": sympy.Ge, r"\ne": sympy.Ne}
    solutions: sympy.Set = sympy.S.Reals
    for left, op, right in zip(sides, relation.ops, sides[1:], strict=False):
        if op not in kinds:
            return None
        claim = kinds[op](left, right)
        part = claim.as_set() if isinstance(claim, Relational) else sympy.S.Reals
        solutions = sympy.Intersection(solutions, part)
    return solutions
