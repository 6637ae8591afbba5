r"""The unit behind a value, in one spelling. Pure strings.

Lives here: what counts as a unit and which units contradict each other. Not here: whether one may
be left out (`verify/policy.py`).

Measures (cm, hours, dollars, degrees, percent, the base of a numeral) contradict each other; nouns
that are counted ("9 ways") say nothing and contradict nothing. A word that changes the number
(million, dozen) is no unit.
"""

import re

_MEASURES = {
    "degree": "degree degrees deg",
    "percent": "percent percentage pct",
    "dollar": "dollar dollars usd bucks",
    "cent": "cent cents",
    "euro": "euro euros",
    "pound": "pound pounds lb lbs",
    "mm": "mm millimeter millimeters",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "inch": "in inch inches",
    "ft": "ft foot feet",
    "yard": "yd yard yards",
    "mile": "mi mile miles",
    "second": "s sec second seconds",
    "minute": "min minute minutes",
    "hour": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr year years",
    "gram": "g gram grams",
    "kg": "kg kilogram kilograms",
    "ounce": "oz ounce ounces",
    "liter": "l liter liters litre litres",
    "ml": "ml milliliter milliliters",
    "gallon": "gal gallon gallons",
    "radian": "rad radian radians",
    "mph": "mph",
    "kmh": "kmh kph",
}
_CANONICAL = {word: unit for unit, words in _MEASURES.items() for word in words.split()}
_SCALES = {"dozen", "hundred", "thousand", "million", "billion", "trillion"}
_TEXT_UNIT = re.compile(
    r"(.*\S)\s*\\text ?\{([^{}]*)\}\s*(?:\^ ?(?:\{ ?(\d) ?\}|(\d)))?", re.DOTALL
)
_PLAIN_UNIT = re.compile(
    r"(.*[\d})])\s*?((?<=[\d})])\s[a-zA-Z][a-zA-Z ./]*|[a-zA-Z]{2,}[a-zA-Z ./]*)"
    r"(?:\^ ?(?:\{ ?(\d) ?\}|(\d)))?",
    re.DOTALL,
)
_LEADING = re.compile(r"(-?)\s*\\text\{(dollar|euro|pound)\}\s*(?=[-\d.\\])(.*)", re.DOTALL)
_BASE = re.compile(r"(-?[\dA-F.]+)\s*_\s*(?:\{\s*(\d{1,2})\s*\}|(\d))")
_FUNCTIONS = {"sin", "cos", "tan", "log", "ln", "mod", "max", "min", "gcd", "lcm", "exp", "sqrt"}


def split_unit(text: str) -> tuple[str, str | None]:
    r"""(value, unit or None) of "5 \text{cm}^2", "64 square feet", "\text{dollar}5", "52_8"."""
    match = _BASE.fullmatch(text)
    if match:
        return match[1], f"base {match[2] or match[3]}"
    match = _LEADING.fullmatch(text)
    if match:
        body, unit = split_unit(match[1] + match[3].strip())
        return body, match[2] if unit in (None, "dollar") or is_measure(unit) is False else unit
    match = _TEXT_UNIT.fullmatch(text)
    if match and _can_have_unit(match[1]):
        return _cut(text, match)
    match = _PLAIN_UNIT.fullmatch(text)
    if match and _is_plain_unit(match[2]):
        return _cut(text, match)
    return text, None


def is_measure(unit: str) -> bool:
    """True for units that contradict another one."""
    return unit.split("^")[0] in _MEASURES or unit.startswith("base ") or "/" in unit


def _cut(text: str, match: re.Match[str]) -> tuple[str, str | None]:
    words: list[str] = re.findall(r"[a-z]+|/|°", match[2].casefold())
    if not words or _SCALES & set(words):
        return text, None
    power = match[3] or match[4] or ""
    power = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}.get(words[0], power)
    words = [word for word in words if word not in ("square", "sq", "cubic", "cu")]
    words = ["/" if word == "per" else _CANONICAL.get(word, word) for word in words]
    if power and words:
        words[-1] += f"^{power}"
    return match[1].rstrip().removesuffix("\\").rstrip(), " ".join(words) or None


def _can_have_unit(body: str) -> bool:
    return re.search(r"[\d)}a-zA-Z]\s*\Z", body) is not None


def _is_plain_unit(words: str) -> bool:
    """True for known measures, and for words of three letters or more behind a space."""
    parts = re.findall(r"[a-zA-Z]+", words)
    if not parts or any(part.casefold() in _FUNCTIONS for part in parts):
        return False
    known = all(p.casefold() in {*_CANONICAL, "square", "sq", "cubic", "per"} for p in parts)
    longest = max(map(len, parts))
    return (known and (longest > 1 or "/" in words)) or (words[0] == " " and len(parts[0]) > 2)
