r"""The shape of an answer: value, words, list, interval, set, matrix, relation. Pure strings.

Lives here: the nodes, and the reader from one spelling (`verify/normal.py`) to them. Not here: when
two of them are equal (`verify/compare.py`).

`read` raises ValueError for what has no shape: brackets that do not close, an empty place.
"""

import dataclasses
import re

from l2s_jax.verify.units import split_unit

MAX_DEPTH = 12  # of brackets; deeper is no answer, and recursion must end

Node = "Value | Words | Group | Matrix | Named | Chain | Relation | Union"


@dataclasses.dataclass(frozen=True)
class Value:
    """A formula, and the unit behind it."""

    text: str
    unit: str | None = None


@dataclasses.dataclass(frozen=True)
class Words:
    """Words, casefolded; or the letter of a multiple-choice answer, as it is."""

    text: str
    is_choice: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
    """Several answers. `kind` is "list", "set", or the brackets: "()", "[]", "(]", "[)"."""

    kind: str
    items: tuple


@dataclasses.dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple, ...]


@dataclasses.dataclass(frozen=True)
class Named:
    """name = value, where the name says nothing that the question did not."""

    name: str
    value: "Value | Words | Group | Matrix | Chain | Union"


@dataclasses.dataclass(frozen=True)
class Chain:
    """Sides that are claimed to be equal: 2 + 3 = 5."""

    sides: tuple
    approximate: bool = False  # the last side is rounded


@dataclasses.dataclass(frozen=True)
class Relation:
    """sides[0] ops[0] sides[1] ...; an equation between expressions, or inequalities."""

    sides: tuple[str, ...]
    ops: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Union:
    """Sets joined by \\cup, \\cap or \\setminus, or a name of a set; `text` is the whole."""

    text: str
    parts: tuple = ()  # where \\cup is the only joint


_OPEN = r"\\begin\{\w+\*?\}|\\\{|\\langle(?![a-z])|\\l(?:floor|ceil|vert)(?![a-z])|[(\[{]"
_CLOSE = r"\\end\{\w+\*?\}|\\\}|\\rangle(?![a-z])|\\r(?:floor|ceil|vert)(?![a-z])|[)\]}]"
_SEMICOLON = r";"
_COMMA = r",|(?<![a-zA-Z\\{])(?:and|or)(?![a-zA-Z}])"
_RELATION = (
    r"\\(?:le|ge|ne|approx|equiv|in|to|mapsto|Rightarrow|iff)(?![a-zA-Z])"
    r"|:=|(?<![<>=])[=<>](?![<>=])"
)
_JOINT = r"\\(?:cup|cap|setminus)(?![a-zA-Z])"
_NO_VARIABLE = re.compile(
    r"\\(?:text|begin|end)\{[^{}]*\}|\\[a-zA-Z]+|(?<![a-zA-Z])[ei](?![a-zA-Z])"
)
_MATRIX = re.compile(r"\\begin\{([pbB]?matrix|smallmatrix|array)\}(.*)\\end\{\1\}", re.DOTALL)
_LABEL = re.compile(
    r"(?:\\(?:angle|triangle|operatorname|overline|widehat|vec|hat|mathbb|mathcal)\{?)?"
    r"(?:[A-Za-z]{1,4}|\\[a-zA-Z]+)\}?(?:_\{[^{}]*\}|_\w|[A-Z0-9])*'*"
    r"(?:_\{[^{}]*\}|_\w)?(?:\((?:\w|\\[a-z]+)(?:,(?:\w|\\[a-z]+))*\))?"
)
_CHOICE = re.compile(  # the letter, alone or before what it stands for: "(B) 12", not "(B) + 12"
    r"\(?([A-J])\)?|(?:\(([A-J])\)[ .:]|([A-J])[.:)] )"
    r"\s*(?!\\(?:cdot|pm|le|ge|in|cup|cap|ne)(?![a-z])|[-+*/^=<>!_,]).+",
    re.DOTALL,
)
_SETS = re.compile(r"\\mathbb ?\{[A-Z]\}|\\emptyset")


def read(text: str, depth: int = 0):
    """The node of an answer in one spelling."""
    text = text.strip()
    if not text or depth > MAX_DEPTH:
        raise ValueError("nothing to read" if not text else "nested too deeply")
    if text.isdigit():
        return Value(text)
    for reader in (
        _read_choice,
        _read_list,
        _read_relation,
        _read_union,
        _read_bracket,
        _read_ratio,
    ):
        node = reader(text, depth)
        if node is not None:
            return node
    return _read_matrix(text, depth) or _read_words(text) or _read_plus_minus(text, depth)


def split(text: str, pattern: str) -> tuple[list[str], list[str]]:
    """(pieces, what stood between them) where `pattern` matches outside of all brackets."""
    pieces, between, start, depth = [], [], 0, 0
    for match in _scanner(pattern).finditer(text):
        if match["open"]:
            depth += 1
        elif match["close"]:
            depth -= 1
            if depth < 0:
                raise ValueError("a bracket closes that none opened")
        elif depth == 0:
            pieces.append(text[start : match.start()].strip())
            between.append(match[0].strip())
            start = match.end()
    if depth:
        raise ValueError("a bracket does not close")
    return [*pieces, text[start:].strip()], between


_SCANNERS: dict[str, re.Pattern[str]] = {}


def _scanner(pattern: str) -> re.Pattern[str]:
    if pattern not in _SCANNERS:
        _SCANNERS[pattern] = re.compile(
            rf"(?P<open>{_OPEN})|(?P<close>{_CLOSE})|(?P<found>{pattern})"
        )
    return _SCANNERS[pattern]


def _read_choice(text: str, depth: int) -> Words | None:
    if depth:
        return None
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip()
    match = _CHOICE.fullmatch(plain)
    if match is None or "," in plain[:4]:
        return None
    return Words(next(filter(None, match.groups())), is_choice=True)


def _read_list(text: str, depth: int) -> Group | None:
    for separators in (_SEMICOLON, _COMMA):
        pieces, between = split(text, separators)
        if between:
            pieces = [piece for piece in pieces if piece]
            if len(pieces) == 1:
                return read(pieces[0], depth + 1)
            return Group("list", _flat(tuple(read(piece, depth + 1) for piece in pieces)))
    return None


def _flat(items: tuple) -> tuple:
    """Without the brackets of lists that plus-minus made inside a list."""
    flat: list = []
    for item in items:
        is_pair = isinstance(item, Group) and item.kind == "pm"
        flat += item.items if is_pair else [item]
    return tuple(flat)


def _read_relation(text: str, depth: int):
    sides, ops = split(text, _RELATION)
    if not ops:
        return None
    if not sides[0] and ops[0] == r"\approx" and len(ops) == 1:
        return read(sides[1], depth + 1)
    if not all(sides):
        raise ValueError("a relation without one of its sides")
    if ops == [r"\in"]:
        return Named(label(sides[0]) or sides[0], read(sides[1], depth + 1))
    if set(ops) <= {"=", r"\approx", ":="}:
        name = label(sides[0])
        values = sides[1:] if name else sides
        closed = name is not None or not any(map(_has_variable, sides))
        if closed:
            nodes = tuple(read(side, depth + 1) for side in values)
            rounded = ops[-1] == r"\approx"
            value = nodes[0] if len(nodes) == 1 else Chain(nodes, rounded)
            return value if name is None else Named(name, value)
        if ops[-1] == r"\approx" and len(sides) == 2:
            return Chain(tuple(read(side, depth + 1) for side in sides), approximate=True)
    return Relation(tuple(sides), tuple(ops))


def label(text: str) -> str | None:
    """The name that a text is, in one spelling: x, x_1, f(x), AB, (p,q), V_1:V_2; else None."""
    name = re.sub(r"\s+", "", re.sub(r"\\text\{([^{}]{1,2})\}", r"\1", text))
    inside = name[1:-1] if name[:1] == "(" and name[-1:] == ")" else name
    names = re.split(r"[,:]", inside) if "(" not in inside else [inside]
    if not names or not all(_LABEL.fullmatch(one) for one in names):
        return None
    if any(re.fullmatch(r"\\(?:pi|infty|sqrt|frac|e|text)|e|i", one) for one in names):
        return None
    return re.sub(r"_\{(\w)\}", r"_\1", name)


def _has_variable(text: str) -> bool:
    letters = _NO_VARIABLE.sub(" ", text)
    return re.search(r"[a-zA-Z]", letters) is not None


def _read_union(text: str, depth: int) -> Union | None:
    parts, joints = split(text, _JOINT)
    if not joints:
        return Union(text) if _SETS.fullmatch(text) else None
    if not all(parts):
        raise ValueError("a union without one of its parts")
    only_union = all("cup" in joint for joint in joints)
    return Union(text, tuple(read(part, depth + 1) for part in parts) if only_union else ())


def _read_bracket(text: str, depth: int):
    opening = re.match(r"\\\{|\\langle(?![a-z])|[(\[{\]]", text)
    closing = re.search(r"(?:\\\}|\\rangle|[)\]}\[])\Z", text)
    if not opening or not closing or not _is_one_bracket(text, opening.end(), closing.start()):
        return None
    inside = text[opening.end() : closing.start()].strip()
    kind = opening[0] + closing[0]
    kind = {r"\{\}": "set", r"\langle\rangle": "()", "]": "("}.get(kind.replace(r"\}", "}"), kind)
    if opening[0] == r"\{":
        kind = "set"
    if kind == "{}":
        return read(inside, depth + 1)
    if kind == "set" and not inside:
        return Union(r"\emptyset")
    pieces, between = split(inside, r"[;,]" if kind != "set" else _COMMA + "|;")
    if kind == "set":
        condition = split(inside, r"\||:|\\mid(?![a-z])")[0]
        if len(condition) == 2 and label(condition[0].split(r"\in")[0]):
            return read(condition[1], depth + 1)
        return Group("set", _flat(tuple(read(piece, depth + 1) for piece in pieces if piece)))
    if not between:
        return read(inside, depth + 1) if kind in ("()", "[]") else None
    if kind in ("][", "]]", "[["):  # French: ]0, 1[ is open
        kind = ("(" if kind[0] == "]" else "[") + (")" if kind[1] == "[" else "]")
    return Group(kind, tuple(read(piece, depth + 1) for piece in pieces))


def _is_one_bracket(text: str, start: int, end: int) -> bool:
    """True where the bracket that opens the text is the one that closes it."""
    try:
        split(text[start:end], "(?!)")
    except ValueError:
        return False
    return True


def _read_ratio(text: str, depth: int):
    """1 : 2 as the fraction that it is; 12:00 as a time, which is a word."""
    if re.fullmatch(r"\d{1,2} ?: ?\d\d(?: ?: ?\d\d)?", text) and re.search(r": ?0\d|: ?00", text):
        return Words(text.replace(" ", ""))
    parts = split(text, ":")[0]
    if len(parts) == 1 or not all(parts):
        return None
    if len(parts) == 2:
        return Value(rf"\frac{{{parts[0]}}}{{{parts[1]}}}")
    return Group("ratio", tuple(read(part, depth + 1) for part in parts))


def _read_matrix(text: str, depth: int) -> Matrix | None:
    match = _MATRIX.fullmatch(text)
    if match is None or r"\begin" in match[2]:
        return None
    body = re.sub(r"\A\s*\{[^{}\\&]*\}|\\hline", "", match[2]) if match[1] == "array" else match[2]
    body = re.sub(r"\A\s*(?:[lcr|]+(?=\s*[^lcr|&]))", "", body) if match[1] == "array" else body
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", body) if row.strip()]
    return Matrix(tuple(tuple(read(c, depth + 1) for c in row.split("&")) for row in rows))


def _read_words(text: str) -> Words | None:
    if text.casefold() in ("no", "yes", "true", "false"):
        return Words(text.casefold())
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    only_text = re.fullmatch(r"(?:\s*\\text\{[^{}]*\}\s*)+", text) is not None
    letters = re.fullmatch(r"[A-Za-z][A-Za-z' -]*[A-Za-z]", plain.strip())
    if only_text and not letters and re.search(r"[A-Za-z]", plain) is None:
        return None
    if only_text or (letters and re.search(r"[A-Za-z]{3}", plain)):
        return Words(" ".join(re.sub(r"[^\w\s'-]", " ", plain).casefold().split()))
    return None


def _read_plus_minus(text: str, depth: int):
    if r"\pm" in text or r"\mp" in text:
        signs = ({r"\pm": "+", r"\mp": "-"}, {r"\pm": "-", r"\mp": "+"})
        both = [re.sub(r"\\[pm][pm](?![a-z])", lambda m, s=sign: s[m[0]], text) for sign in signs]
        both = [one.lstrip("+ ") for one in both]
        return Group("pm", tuple(read(one, depth + 1) for one in both))
    split(text, "(?!)")  # refuses brackets that do not close
    body, unit = split_unit(text)
    return Value(body, unit)
