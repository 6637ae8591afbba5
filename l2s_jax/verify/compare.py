r"""When two answers of known shape are equal. Pure; what needs algebra is asked of a `Judge`.

Lives here: the rules for names, chains, lists, brackets, intervals, matrices, words, units and
percent signs. Not here: reading shapes (`verify/shapes.py`), conventions (`verify/policy.py`),
algebra (`verify/symbolic.py`).

Every answer is True, False, or None: algebra must decide, and the judge at hand knows none. The
same rules so run in this process, where the judge is `Plain` and most answers are settled, and in
a worker, where it is `symbolic.Symbolic`.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from l2s_jax.verify.exact import exact
from l2s_jax.verify.policy import Policy
from l2s_jax.verify.shapes import (
    Chain,
    Group,
    Matrix,
    Named,
    Relation,
    Union,
    Value,
    Words,
    label,
)
from l2s_jax.verify.units import is_measure

_TRUE = {"yes", "true"}
_FALSE = {"no", "false"}
_VECTORS = ("()", "[]")


@runtime_checkable
class Judge(Protocol):
    """Algebra on texts in one spelling; None where it cannot tell."""

    def values(self, gold: str, prediction: str) -> bool | None: ...

    def relations(self, gold: Relation, prediction: Relation) -> bool | None: ...

    def sets(self, gold, prediction) -> bool | None: ...


class Plain:
    """Knows no algebra."""

    def values(self, gold: str, prediction: str) -> bool | None:
        return None

    def relations(self, gold: Relation, prediction: Relation) -> bool | None:
        return None

    def sets(self, gold, prediction) -> bool | None:
        return None


def same(gold, prediction, policy: Policy, judge: Judge) -> bool | None:
    """Whether the prediction says what the gold says."""
    if isinstance(prediction, Named) or isinstance(gold, Named):
        return _same_named(gold, prediction, policy, judge)
    if isinstance(prediction, Chain):  # every side must be right: "0 = 1 = 5" ends well only
        sides = prediction.sides[:-1] if prediction.approximate else prediction.sides
        return _all(same(gold, side, policy, judge) for side in sides)
    if isinstance(gold, Chain):
        sides = gold.sides[:-1] if gold.approximate else gold.sides
        return _any(same(side, prediction, policy, judge) for side in sides)
    gold, prediction = _plain_group(gold), _plain_group(prediction)
    for one, other in ((gold, prediction), (prediction, gold)):
        if isinstance(one, Relation) and isinstance(other, Group | Union):
            interval = interval_of(one)
            if interval is None:
                return judge.sets(gold, prediction)
            pair = (interval, other) if one is gold else (other, interval)
            return same(*pair, policy, judge)
    if isinstance(gold, Union) or isinstance(prediction, Union):
        return _same_sets(gold, prediction, policy, judge)
    if isinstance(gold, Relation) and isinstance(prediction, Relation):
        return _same_relations(gold, prediction, policy, judge)
    if isinstance(gold, Words) or isinstance(prediction, Words):
        return _same_words(gold, prediction)
    if isinstance(gold, Matrix) or isinstance(prediction, Matrix):
        return _same_matrices(gold, prediction, policy, judge)
    if isinstance(gold, Group) and isinstance(prediction, Group):
        return _same_groups(gold, prediction, policy, judge)
    if isinstance(gold, Value) and isinstance(prediction, Value):
        return _same_values(gold, prediction, policy, judge)
    return False


def _all(answers) -> bool | None:
    unsure = False
    for answer in answers:
        if answer is False:
            return False
        unsure |= answer is None
    return None if unsure else True


def _any(answers) -> bool | None:
    unsure = False
    for answer in answers:
        if answer:
            return True
        unsure |= answer is None
    return None if unsure else False


# ---- names ----


def _same_named(gold, prediction, policy: Policy, judge: Judge) -> bool | None:
    if isinstance(gold, Named) and isinstance(prediction, Named):
        if not _names_agree(gold.name, prediction.name):
            return False
        return same(gold.value, prediction.value, policy, judge)
    if isinstance(gold, Named):
        if isinstance(prediction, Relation):
            return _named_against_relation(gold, prediction, policy, judge)
        return same(gold.value, prediction, policy, judge)
    if isinstance(gold, Relation):
        return _named_against_relation(prediction, gold, policy, judge, swap=True)
    return same(gold, prediction.value, policy, judge)


def _named_against_relation(named: Named, relation: Relation, policy, judge, swap=False):
    if isinstance(named.value, Value) and relation.ops == ("=",):
        pair = (Relation((named.name, named.value.text), ("=",)), relation)
        return judge.relations(*(reversed(pair) if swap else pair))
    pair = (relation, named.value) if swap else (named.value, relation)
    return same(*pair, policy, judge)


def _names_agree(one: str, other: str) -> bool:
    """True for one name, for f(x) beside y, and for two functions of the same variable."""
    if one == other:
        return True
    heads = [name.split("(")[0] for name in (one, other)]
    bodies = [name.partition("(")[2] for name in (one, other)]
    return ("y" in (one, other) and any(bodies)) or (all(heads) and bodies[0] == bodies[1] != "")


# ---- several answers ----


def _plain_group(node):
    """A list of one is the one; a plus-minus on its own is a list."""
    if isinstance(node, Group) and node.kind == "pm":
        return Group("list", node.items)
    if isinstance(node, Group) and len(node.items) == 1 and node.kind in ("list", "set"):
        return node.items[0]
    return node


def _same_groups(gold: Group, prediction: Group, policy: Policy, judge: Judge) -> bool | None:
    kinds = {gold.kind, prediction.kind}
    if len(gold.items) != len(prediction.items):
        return False
    if kinds <= {"list", "set"}:
        return _same_unordered(gold, prediction, policy, judge)
    left_out = "list" in kinds and kinds <= {"list", "()"} and policy.brackets_may_be_left_out
    vectors = kinds <= set(_VECTORS) and len(gold.items) > 2  # no interval has three ends
    if len(kinds) > 1 and not left_out and not vectors:
        return False
    pairs = zip(gold.items, prediction.items, strict=True)
    return _all(same(one, other, policy, judge) for one, other in pairs)


def _same_unordered(gold: Group, prediction: Group, policy: Policy, judge: Judge) -> bool | None:
    if _named_apart(gold.items) != _named_apart(prediction.items) or (
        not policy.lists_are_unordered and "set" not in (gold.kind, prediction.kind)
    ):  # a = 1, b = 2 is 1, 2 in this order
        pairs = zip(gold.items, prediction.items, strict=True)
        return _all(same(one, other, policy, judge) for one, other in pairs)
    left, unsure = list(prediction.items), False
    for item in gold.items:
        answers = [same(item, other, policy, judge) for other in left]
        if True in answers:
            del left[answers.index(True)]
        elif None in answers:
            unsure = True
        else:
            return False
    return None if unsure else True


def _named_apart(items: Sequence) -> bool:
    """True where the items bear different names: x = 1, y = 2, but not x_1 = 1, x_2 = 2."""
    names = {item.name.split("_")[0] for item in items if isinstance(item, Named)}
    return len(names) > 1


def _same_matrices(gold, prediction, policy: Policy, judge: Judge) -> bool | None:
    if isinstance(gold, Matrix) and isinstance(prediction, Matrix):
        if [len(row) for row in gold.rows] != [len(row) for row in prediction.rows]:
            return False
        cells = [[cell for row in matrix.rows for cell in row] for matrix in (gold, prediction)]
        return _all(same(one, other, policy, judge) for one, other in zip(*cells, strict=True))
    matrix, other = (gold, prediction) if isinstance(gold, Matrix) else (prediction, gold)
    if isinstance(other, Value) and r"\begin" in other.text:
        return None if isinstance(judge, Plain) else judge.sets(gold, prediction)
    if len(matrix.rows) > 1 and any(len(row) > 1 for row in matrix.rows):
        return False
    vector = Group("()", tuple(cell for row in matrix.rows for cell in row))
    pair = (vector, other) if isinstance(gold, Matrix) else (other, vector)
    return same(*pair, policy, judge) if isinstance(other, Group) else False


# ---- sets and relations ----


def interval_of(relation: Relation) -> Group | None:
    r"""a < x \le b, x > a and the like as an interval; None for all else."""
    sides, ops = relation.sides, relation.ops
    less, more = ("<", r"\le"), (">", r"\ge")
    if set(ops) <= set(more):
        sides, ops = sides[::-1], tuple({">": "<", r"\ge": r"\le"}[op] for op in reversed(ops))
    if not set(ops) <= set(less):
        return None
    if len(sides) == 3 and label(sides[1]) and not label(sides[0]) and not label(sides[2]):
        low, high = Value(sides[0]), Value(sides[2])
        kind = ("(" if ops[0] == "<" else "[") + (")" if ops[1] == "<" else "]")
        return Group(kind, (low, high))
    if len(sides) != 2 or bool(label(sides[0])) == bool(label(sides[1])):
        return None
    if label(sides[0]):
        kind = "()" if ops[0] == "<" else "(]"
        return Group(kind, (Value(r"-\infty"), Value(sides[1])))
    return Group("()" if ops[0] == "<" else "[)", (Value(sides[0]), Value(r"\infty")))


def variable_of(relation: Relation) -> str | None:
    """The name that an inequality bounds."""
    place = 1 if len(relation.sides) == 3 else 0
    return label(relation.sides[place]) or label(relation.sides[-1])


def _same_relations(gold: Relation, prediction: Relation, policy, judge) -> bool | None:
    texts = [tuple("".join(side.split()) for side in node.sides) for node in (gold, prediction)]
    if texts[0] == texts[1] and gold.ops == prediction.ops:
        return True
    intervals = interval_of(gold), interval_of(prediction)
    if None not in intervals and variable_of(gold) == variable_of(prediction):
        return same(*intervals, policy, judge)
    return judge.relations(gold, prediction)


def _same_sets(gold, prediction, policy: Policy, judge: Judge) -> bool | None:
    if isinstance(gold, Value | Words | Matrix) or isinstance(prediction, Value | Words | Matrix):
        return False
    if isinstance(gold, Union) and isinstance(prediction, Union):
        if gold.text.split() == prediction.text.split():
            return True
        if gold.parts and prediction.parts:
            groups = Group("set", gold.parts), Group("set", prediction.parts)
            if len(gold.parts) == len(prediction.parts) and _same_unordered(*groups, policy, judge):
                return True
    return judge.sets(gold, prediction)


# ---- one answer ----


def _same_words(gold, prediction) -> bool:
    for one, other in ((gold, prediction), (prediction, gold)):
        if isinstance(one, Words) and one.is_choice and isinstance(other, Value):
            return one.text == other.text.strip("() ")
    if not (isinstance(gold, Words) and isinstance(prediction, Words)):
        return False
    if gold.is_choice or prediction.is_choice:
        return gold.text.casefold() == prediction.text.casefold()
    texts = [node.text.removeprefix("the ").strip() for node in (gold, prediction)]
    return texts[0] == texts[1] or any(set(texts) <= words for words in (_TRUE, _FALSE))


def _same_values(gold: Value, prediction: Value, policy: Policy, judge: Judge) -> bool | None:
    texts = [gold.text, prediction.text]
    units = [gold.unit, prediction.unit]
    if policy.percent == "hundredth":
        texts = [
            rf"({text}) \cdot 10^{{-2}}" if unit == "percent" else text
            for text, unit in zip(texts, units, strict=True)
        ]
        units = [None if unit == "percent" else unit for unit in units]
    if policy.degrees_are_angles and (units in (["degree", None], [None, "degree"])):
        at = units.index("degree")
        if r"\pi" in texts[1 - at]:
            texts[at] = rf"{texts[at]} \cdot \frac{{\pi}}{{180}}"
    elif not _units_agree(units[0], units[1], policy):
        return False
    if texts[0].replace(" ", "") == texts[1].replace(" ", ""):
        return True
    values = exact(texts[0]), exact(texts[1])
    if values[0] is None or values[1] is None:
        return judge.values(*texts)
    return abs(values[0] - values[1]) <= policy.tolerance * abs(values[0])


def _units_agree(gold: str | None, prediction: str | None, policy: Policy) -> bool:
    if gold == prediction:
        return True
    if gold is None or prediction is None:
        return policy.units == "may-be-left-out" or gold is None
    return not (is_measure(gold) and is_measure(prediction))
