r"""The exact value of a number as people write it. Pure strings and fractions.

Lives here: whole numbers, decimals, thousands groups, fractions, mixed numbers, powers, scientific
notation, repeating decimals. Not here: roots, letters and sums
(`verify/symbolic.py`).

Nothing large is ever computed: a text is limited in length and a power in bits, as int() and ** on
a hostile text take minutes.
"""

import re
from fractions import Fraction

MAX_CHARACTERS = 1000  # int() is quadratic
MAX_BITS = 8192  # of a power

_WHOLE = r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+|\d+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d*)?|\.\d+)"
_SIGNED = rf"[+-]? ?{_DECIMAL}"
_PLAIN = re.compile(_SIGNED)
_SIGN = r"(?P<sign>(?:[+-] ?)*)"
_FRACTION = re.compile(
    rf"{_SIGN}(?:(?P<whole>{_WHOLE}) ?)??"
    rf"(?:\\frac\{{ ?(?P<top>{_SIGNED}) ?\}}\{{ ?(?P<bottom>{_SIGNED}) ?\}}"
    rf"|(?<![\d.])(?P<top1>{_DECIMAL}) ?/ ?(?P<bottom1>{_SIGNED})"
    rf"|\((?P<top2>{_SIGNED})\) ?/ ?\((?P<bottom2>{_SIGNED})\))"
)
_SCIENTIFIC = re.compile(
    rf"{_SIGN}(?P<factor>{_DECIMAL})(?: ?\\cdot ?10 ?\^ ?(?:\{{(?P<up>{_SIGNED})\}}|(?P<up1>\d))"
    r"|[eE](?P<up2>[+-]?\d{1,4}))"
)
_POWER = re.compile(
    r"(?P<sign>-?) ?(?P<base>\d+(?:\.\d+)?) ?\^ ?(?:\{ ?(?P<up>-?\d{1,5}) ?\}|(?P<up1>\d))"
)
_REPEATING = re.compile(
    r"(?P<sign>-?)(?P<whole>\d*)\.(?P<fixed>\d*)\\(?:overline|bar) ?\{(?P<again>\d+)\}"
)


def exact(text: str) -> Fraction | None:
    """The value of a number in one spelling (`normal.spell`); None for all else."""
    if len(text) > MAX_CHARACTERS:
        return None
    while len(text) > 2 and text[0] == "(" and text[-1] == ")" and text.find(")") == len(text) - 1:
        text = text[1:-1].strip()
    if not text.isascii():  # \d is any script's digit
        return None
    if _PLAIN.fullmatch(text):
        return _value(text)
    for pattern, read in _READERS:
        match = pattern.fullmatch(text)
        if match:
            return read({name: part for name, part in match.groupdict().items() if part})
    return None


def _value(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", ""))


def _negative(parts: dict[str, str]) -> int:
    return -1 if parts.get("sign", "").count("-") % 2 else 1


def _fraction(parts: dict[str, str]) -> Fraction | None:
    top, bottom = (
        _value(next(part for name, part in parts.items() if name.startswith(side)))
        for side in ("top", "bottom")
    )
    if bottom == 0:
        return None
    whole = parts.get("whole")
    if whole is None:
        return _negative(parts) * top / bottom
    # 2 1/3 is mixed; in 2 7/3 or 2 (-1)/3 the two are multiplied or mistyped: nobody can tell.
    is_mixed = 0 <= top < bottom and top.denominator == bottom.denominator == 1
    return _negative(parts) * (_value(whole) + top / bottom) if is_mixed else None


def _scientific(parts: dict[str, str]) -> Fraction | None:
    up = _value(next(part for name, part in parts.items() if name.startswith("up")))
    factor = _value(parts["factor"])
    return (
        None if (power := _power(Fraction(10), up)) is None else _negative(parts) * factor * power
    )


def _plain_power(parts: dict[str, str]) -> Fraction | None:
    power = _power(_value(parts["base"]), _value(parts.get("up") or parts["up1"]))
    return None if power is None else _negative(parts) * power


def _power(base: Fraction, up: Fraction) -> Fraction | None:
    bits = base.numerator.bit_length() + base.denominator.bit_length()
    if up.denominator != 1 or bits * abs(up) > MAX_BITS or (base == 0 and up <= 0):
        return None
    return base ** int(up)


def _repeating(parts: dict[str, str]) -> Fraction:
    fixed, again = parts.get("fixed", ""), parts["again"]
    value = Fraction(int(parts.get("whole", "0") + fixed), 10 ** len(fixed))
    value += Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(fixed))
    return _negative(parts) * value


_READERS = (
    (_FRACTION, _fraction),
    (_SCIENTIFIC, _scientific),
    (_POWER, _plain_power),
    (_REPEATING, _repeating),
)
