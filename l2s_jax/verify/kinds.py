"""What kind of answer a reference is: number, formula, list and so on. For reports.

Lives here: one name per shape. Not here: the shapes (`verify/shapes.py`).
"""

from l2s_jax.verify.exact import exact
from l2s_jax.verify.normal import spell
from l2s_jax.verify.shapes import Group, Matrix, Named, Relation, Union, Value, Words, read

_GROUPS = {"list": "list", "pm": "list", "set": "set", "()": "tuple", "ratio": "ratio"}


def answer_kind(gold: str) -> str:
    """whole, fraction, formula, words, choice, list, tuple, interval, set, matrix, relation..."""
    try:
        node = read(spell(gold))
    except (ValueError, RecursionError):
        return "unreadable"
    while isinstance(node, Named):
        node = node.value
    if isinstance(node, Value):
        value = exact(node.text)
        return "formula" if value is None else "whole" if value.denominator == 1 else "fraction"
    if isinstance(node, Words):
        return "choice" if node.is_choice else "words"
    if isinstance(node, Group):
        return _GROUPS.get(node.kind, "interval")
    plain = {Matrix: "matrix", Relation: "relation", Union: "set"}
    return plain.get(type(node), "chain")
