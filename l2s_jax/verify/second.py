r"""A second, independent opinion on whether two answers are equal: numbers at random points.

Lives here: a small reader of LaTeX and plain formulas that evaluates while it reads, and the
comparison of what comes out. Not here: the decision that programs act on (`verify/math.py`), with
which this file shares no line and no library, so that the two do not err alike.

How: each answer is read at a few points (values for its variables, drawn from their names) into a
tree of numbers, words, tuples and sets; two answers are equal where the trees are, at each point.
Whole numbers and fractions are exact, all else is complex with a relative tolerance of 1e-9. What
the reader does not understand (relations, unions, sums over an index) gets no opinion: None.

Conventions are the strict ones of `verify/policy.py`: a percent sign and a unit count for nothing,
"x = 5" answers 5, "1, 2" is unordered and "(1, 2)" is not, $\pm a$ is two answers.
"""

import cmath
import math
import random
import re
from collections.abc import Callable
from fractions import Fraction

NUM_POINTS = 3
MAX_TEXT = 2000  # characters; a longer answer gets no opinion
MAX_BITS = 20_000  # of an exact number; beyond it there is no opinion
TOLERANCE = 1e-9  # relative, where a value is not exact

Number = Fraction | complex
Tree = Number | str | tuple

_TOKEN = re.compile(
    r"\\begin\{[a-z]+\}|\\end\{[a-z]+\}|\\text\{[^{}]*\}|\\[a-zA-Z]+|\\.|\\\\"
    r"|\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?|\d+\.?\d*|\.\d+|[a-zA-Z]+|\S"
)
_DROPPED = re.compile(
    r"(?<!\\)\\(?:left|right|big|Big|displaystyle|limits|qquad|quad|,|;|:|!|\s)(?![a-zA-Z])"
    r"|\$|(?<!\\)\\[()\[\]]|~"
)
_TEXT = re.compile(r"\\(?:textbf|textit|text|mathrm|mbox|operatorname|mathbf)\s*\{([^{}]*)\}")
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "ln": cmath.log,
    "log": cmath.log10,  # a bare log: base ten here, and no opinion where that would matter
    "exp": cmath.exp,
}
_CONSTANTS = {"pi": math.pi, "e": math.e, "i": 1j, "infty": complex(math.inf)}
_UNICODE = {
    "−": "-",
    "π": r"\pi ",
    "√": r"\sqrt ",
    "∞": r"\infty ",
    "×": r"\times ",
    "·": r"\cdot ",
}
_SEPARATORS = (",", ";", "and", "or")
_CLOSING = {"(": ")", "[": "]", "{": "}", r"\{": r"\}", "|": "|"}


class _Lost(Exception):
    """The reader does not understand the text."""


def second_opinion(gold: str, prediction: str) -> bool | None:
    """Whether the answers are equal; None where this reader cannot tell."""
    if max(len(gold), len(prediction)) > MAX_TEXT:
        return None
    texts = [_spell(answer) for answer in (gold, prediction)]
    if not all(texts):
        return None
    if texts[0] == texts[1]:
        return True
    try:
        for point in range(NUM_POINTS):
            trees = [_unwrap(_Reader(text, point).read()) for text in texts]
            if not _same(*trees):
                return False
    except (_Lost, ArithmeticError, ValueError, RecursionError):
        return None
    return True


def _spell(answer: str) -> str:
    answer = re.sub(r"\{,\}|,\\!\s*(?=\d{3})", "", answer.strip().rstrip("."))
    for sign, command in _UNICODE.items():
        answer = answer.replace(sign, command)
    answer = _TEXT.sub(lambda match: rf" \text{{{match[1].strip()}}} ", answer)
    answer = re.sub(r"\\[dtc]frac", r"\\frac", _DROPPED.sub(" ", answer.replace(r"\$", "")))
    return " ".join(re.sub(r"\^\s*\{?\s*\\circ\s*\}?|°|\\?%", " ", answer).split())


def _unwrap(tree: Tree) -> Tree:
    """Without brackets around a single value."""
    while isinstance(tree, tuple) and len(tree) == 2:
        tree = tree[1]
    return tree


def _same(one: Tree, other: Tree) -> bool:
    one, other = _unwrap(one), _unwrap(other)
    if isinstance(one, str) or isinstance(other, str):
        return isinstance(one, str) and isinstance(other, str) and one == other
    if isinstance(one, tuple) and isinstance(other, tuple):
        return _same_items(one, other)
    if isinstance(one, tuple) or isinstance(other, tuple):
        return False
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    a, b = complex(one), complex(other)
    if cmath.isinf(a) or cmath.isinf(b):
        return a == b
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def _same_items(one: tuple, other: tuple) -> bool:
    """Items are ("(", a, b), ("{", a, b) for sets and ("", a, b) for a bare list."""
    (kind, *items), (other_kind, *others) = one, other
    unordered = {kind, other_kind} <= {"", "{"}
    alike = unordered or kind == other_kind or "" in (kind, other_kind)
    if len(items) != len(others) or not alike:
        return False
    if not unordered:
        return all(_same(a, b) for a, b in zip(items, others, strict=True))
    for item in items:
        found = next((i for i, b in enumerate(others) if _same(item, b)), None)
        if found is None:
            return False
        del others[found]
    return True


class _Reader:
    """Recursive descent over tokens; every rule returns the value at `point`."""

    def __init__(self, text: str, point: int):
        self.tokens = _TOKEN.findall(text)
        self.at = 0
        self.point = point

    def read(self) -> Tree:
        tree = self.items("")
        if self.at < len(self.tokens):
            raise _Lost
        return tree

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if not token or (expected is not None and token != expected):
            raise _Lost
        self.at += 1
        return token

    # ---- lists ----

    def items(self, kind: str) -> tuple:
        found: list[Tree] = []
        while True:
            found += self.labelled()
            if not self.separator():
                return (kind, *found)

    def separator(self) -> bool:
        start = self.at
        while self.word() in _SEPARATORS:
            self.at += 1
        return self.at > start

    def word(self) -> str:
        token = self.peek()
        return token[6:-1].strip() if token.startswith(r"\text{") else token

    def labelled(self) -> list[Tree]:
        """One item without the name before its equals sign; two where it holds plus-minus."""
        start = self.at
        if re.fullmatch(r"[a-zA-Z]", self.peek()):
            self.at += 1
            if self.peek() == "_":
                self.at += 1
                self.group_text()
            if self.peek() != "=":
                self.at = start
            else:
                self.at += 1
                start = self.at
        if self.is_words():
            return [self.words()]
        values = [self.sum(sign) for sign in (1, -1) if not self.rewind(start)]
        both = self.tokens[start : self.at].count(r"\pm") > 0
        return values if both else values[:1]

    def rewind(self, start: int) -> None:
        self.at = start

    def is_words(self) -> bool:
        word = self.word()
        return (
            bool(word)
            and word not in _SEPARATORS
            and (
                self.peek().startswith(r"\text{")
                or (len(word) > 2 and word.isalpha() and word not in _FUNCTIONS and word != "sqrt")
            )
        )

    def words(self) -> str:
        found = []
        while self.is_words() or re.fullmatch("[a-zA-Z]+", self.peek()):
            if self.word() in _SEPARATORS:
                break
            found.append(self.word())
            self.at += 1
        return " ".join(found).casefold().strip("() ")

    # ---- arithmetic ----

    def sum(self, sign: int) -> Tree:
        value = self.product(sign)
        while self.peek() in ("+", "-", r"\pm"):
            operator = self.take()
            other = self.number(self.product(sign))
            negative = operator == "-" or (operator == r"\pm" and sign < 0)
            value = _bounded(self.number(value) + (-other if negative else other))
        return value

    def product(self, sign: int) -> Tree:
        value = self.unary(sign)
        while True:
            token = self.peek()
            if token in ("*", r"\cdot", r"\times"):
                self.at += 1
                value = _bounded(self.number(value) * self.number(self.unary(sign)))
            elif token in ("/", r"\div"):
                self.at += 1
                value = _divide(self.number(value), self.number(self.unary(sign)))
            elif self.starts_factor():
                mixed = self.is_mixed()
                other = self.number(self.power(sign))
                value = self.number(value)
                value = _bounded(value + other if mixed else value * other)
            elif token.startswith(r"\text{") and self.word() not in _SEPARATORS:
                self.at += 1  # a unit
                if self.peek() == "^":
                    self.at += 1
                    self.group_text()
            else:
                return value

    def starts_factor(self) -> bool:
        token = self.peek()
        if token.startswith(r"\text{") or token in _SEPARATORS:
            return False
        named = token[1:] in {"frac", "sqrt", *_CONSTANTS, *_FUNCTIONS, "binom"}
        return bool(re.match(r"[a-zA-Z0-9.(]", token)) or (token[:1] == "\\" and named)

    def is_mixed(self) -> bool:
        """True at the fraction of 1 1/2: whole numbers on either side, and nothing between."""
        before, ahead = self.tokens[self.at - 1], self.tokens[self.at : self.at + 7]
        whole = before.isdigit() and (self.at < 2 or self.tokens[self.at - 2] not in ("/", "^"))
        plain = re.fullmatch(r"\\frac(\{\d+\}\{\d+\}|\d\d|\d+\{\d+\})", "".join(ahead))
        slash = len(ahead) >= 3 and ahead[1] == "/" and ahead[0].isdigit() and ahead[2].isdigit()
        return whole and (slash or bool(plain))

    def unary(self, sign: int) -> Tree:
        if self.peek() in ("-", "+", r"\pm"):
            operator = self.take()
            value = self.number(self.unary(sign))
            return -value if operator == "-" or (operator == r"\pm" and sign < 0) else value
        return self.power(sign)

    def power(self, sign: int) -> Tree:
        value = self.atom(sign)
        while self.peek() == "!":
            self.at += 1
            value = _factorial(self.number(value))
        if self.peek() in ("^", "**"):
            self.at += 1
            return _power(self.number(value), self.number(self.argument(sign)))
        return value

    def argument(self, sign: int) -> Tree:
        """What follows a command or a caret: a group, one digit, or one atom."""
        token = self.peek()
        if token == "{":
            self.at += 1
            value = self.sum(sign)
            self.take("}")
            return value
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
        return self.unary(sign) if token in ("-", "+") else self.atom(sign)

    def atom(self, sign: int) -> Tree:
        token = self.take()
        if re.match(r"[\d.]", token):
            return Fraction(token.replace(",", "").rstrip("."))
        if token in _CLOSING:
            return self.bracket(token, sign)
        name = token.lstrip("\\")
        if name == "frac":
            return _divide(self.number(self.argument(sign)), self.number(self.argument(sign)))
        if name == "sqrt":
            return self.root(sign)
        if name in _FUNCTIONS and token != name[:1]:
            return self.function(name, sign)
        if name in _CONSTANTS:
            return complex(_CONSTANTS[name])
        if re.fullmatch(r"\\begin\{[pb]matrix\}", token):
            return self.matrix()
        if token.isalpha() and len(token) == 1:
            return self.variable(token)
        if token.isalpha() and len(token) == 2:  # a product of two variables
            self.tokens[self.at : self.at] = [token[1]]
            return self.variable(token[0])
        raise _Lost

    def bracket(self, opening: str, sign: int) -> Tree:
        if opening == "|":
            value = complex(abs(complex(self.number(self.sum(sign)))))
            self.take("|")
            return value
        items = self.items({r"\{": "{", "{": ""}.get(opening, opening))
        closing = self.take()
        if closing != _CLOSING[opening]:  # a half-open interval
            if opening + closing not in ("(]", "[)") or len(items) != 3:
                raise _Lost
            return (opening + closing, *items[1:])
        return items[1] if len(items) == 2 else items

    def matrix(self) -> tuple:
        """Rows, each in its own bracket; a single column reads as a vector in one bracket."""
        rows: list[list[Tree]] = [[self.sum(1)]]
        while not (token := self.take()).startswith(r"\end"):
            if token == r"\\":
                rows.append([])
            elif token != "&":
                raise _Lost
            if not self.peek().startswith(r"\end"):
                rows[-1].append(self.sum(1))
        rows = [row for row in rows if row]
        if all(len(row) == 1 for row in rows):
            return ("(", *(row[0] for row in rows))
        return ("m", *(("(", *row) for row in rows))

    def root(self, sign: int) -> Number:
        degree: Number = Fraction(2)
        if self.peek() == "[":
            self.at += 1
            degree = self.number(self.sum(sign))
            self.take("]")
        value = self.number(self.argument(sign))
        if isinstance(value, Fraction) and value < 0 and degree == 3:
            return -_power(-value, Fraction(1, 3))
        return _power(value, _divide(Fraction(1), degree))

    def function(self, name: str, sign: int) -> Number:
        exponent: Number | None = None
        if name == "log" and self.peek() == "_":
            self.at += 1
            base = complex(self.number(self.argument(sign)))
            return cmath.log(complex(self.number(self.power(sign)))) / cmath.log(base)
        if name == "log":
            raise _Lost  # of which base?
        if self.peek() == "^":
            self.at += 1
            exponent = self.number(self.argument(sign))
        value = _FUNCTIONS[name](complex(self.number(self.power(sign))))
        return value if exponent is None else _power(value, exponent)

    def variable(self, name: str) -> complex:
        if self.peek() == "_":
            self.at += 1
            name += "_" + self.group_text()
        return complex(random.Random(f"{name} at {self.point}").uniform(0.5, 3.0))

    def group_text(self) -> str:
        token = self.take()
        if token != "{":
            return token
        found = ""
        while self.peek() != "}":
            found += self.take()
        self.at += 1
        return found

    def number(self, tree: Tree) -> Number:
        tree = _unwrap(tree)
        if isinstance(tree, str | tuple):
            raise _Lost
        return tree


def _bounded(value: Number) -> Number:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise _Lost
    elif cmath.isnan(value):
        raise _Lost
    return value


def _divide(top: Number, bottom: Number) -> Number:
    if bottom == 0:
        raise _Lost
    return _bounded(top / bottom)


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if size * abs(exponent) > MAX_BITS or (base == 0 and exponent <= 0):
                raise _Lost
            return base ** int(exponent)
        base, exponent = complex(base), complex(exponent)
    if base == 0:
        raise _Lost
    return _bounded(complex(base) ** complex(exponent))


def _factorial(value: Number) -> Number:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 1000:
        raise _Lost
    return Fraction(math.factorial(int(value)))
