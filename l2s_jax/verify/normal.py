r"""One spelling of an answer: LaTeX, Unicode and plain text written the same way. Pure strings.

Lives here: what changes how an answer looks and not what it says. Not here: where the answer stands
in a text (`verify/answers.py`), its unit (`verify/units.py`), its shape (`verify/shapes.py`), its
value (`verify/exact.py`).

In the result, fractions and roots have braces, words stand in `\text{...}`, "and" and "or" stand
bare, and no delimiter, size or spacing command is left.
"""

import re
import unicodedata
from collections.abc import Callable

_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
        "÷": "/", "∕": "/", "⁄": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ",
        "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ ", "θ": r"\theta ",
        "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "ℝ": r"\mathbb{R}", "∅": r"\emptyset ",
        "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}", "⟨": r"\langle ", "⟩": r"\rangle ", "\u00a0": " ", "\u200b": "",
        "∠": r"\angle ", "△": r"\triangle ", "′": "'", "’": "'",
    }
)  # fmt: skip
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_ROOT = re.compile(  # and what can be braced behind it
    r"√\s*(\d+(?:\.\d+)?|[a-zA-Z]|\\(?:pi|alpha|beta|theta|lambda)(?![a-zA-Z])"
    r"|\\frac\{\d+\}\{\d+\}|\(|\{)?"
)
_WORDS = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mbox|hbox|mathrm|mathit|mathbf|operatorname)"
    r"\*?\s*\{([^{}]*)\}"
)
_JOINING = re.compile(r"[\s,]*(?:and|or)[\s,]*")
_PLAIN_ROOT = re.compile(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)")
_Replacement = str | Callable[[re.Match[str]], str]
_RULES: tuple[tuple[re.Pattern[str], _Replacement], ...] = (
    (re.compile(r",\s*\\!\s*(?=\d{3}(?!\d))"), ""),  # 11,\! 111 is one number
    (re.compile(r"(?<=\d)\s*\{\s*,\s*\}\s*(?=\d{3}(?!\d))"), ""),  # and so is 14{,}916
    (re.compile(r"(?<=\d)\{,\}(?=\d)|(?<=\d)\{\.\}(?=\d)"), lambda match: match[0][1]),
    (re.compile(r"\\!|\\(?:displaystyle|textstyle|(?:no)?limits|bf|rm)(?![a-zA-Z])"), ""),
    (re.compile(r"(?<!\\)\\[,;:> ]|~|\\(?:quad|qquad|hspace\*?\{[^{}]*\})(?=[^a-zA-Z]|x|$)"), " "),
    (re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])|\\(?:over)?frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:lbrace|lbrack)(?![a-zA-Z])"), lambda m: r"\{" if "ce" in m[0] else "["),
    (re.compile(r"\\(?:rbrace|rbrack)(?![a-zA-Z])"), lambda m: r"\}" if "ce" in m[0] else "]"),
    (re.compile(r"\\(?:leqslant|leqq|leq|lte|le)(?![a-zA-Z])|<=|=<"), r"\\le "),
    (re.compile(r"\\(?:geqslant|geqq|geq|gte|ge)(?![a-zA-Z])|>="), r"\\ge "),
    (re.compile(r"\\(?:lt)(?![a-zA-Z])"), "<"),
    (re.compile(r"\\(?:gt)(?![a-zA-Z])"), ">"),
    (re.compile(r"\\(?:neq|ne)(?![a-zA-Z])|\\not\s*=|!=|/="), r"\\ne "),
    (re.compile(r"\\(?:approx|simeq|thickapprox)(?![a-zA-Z])"), r"\\approx "),
    (re.compile(r"\\(?:cdotp?|times|ast)(?![a-zA-Z])|(?<!\*)\*(?!\*)"), r"\\cdot "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\\(?:div)(?![a-zA-Z])"), "/"),
    (re.compile(r"\\(?:ldots|cdots|dots)(?![a-zA-Z])"), "..."),
    (re.compile(r"\\(?:varnothing|emptyset)(?![a-zA-Z])"), r"\\emptyset "),
    (re.compile(r"\\(?:R|reals|Re)(?![a-zA-Z])|\\mathbf\{R\}"), r"\\mathbb{R}"),
    (re.compile(r"\\(?:backslash|smallsetminus|setminus)(?![a-zA-Z])"), r"\\setminus "),
    (re.compile(r"(?<=[)\]}])\s*U\s*(?=[(\[\\])"), r"\\cup "),
    (re.compile(r"\+\s*\\infty"), r"\\infty"),
    (re.compile(r"(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])"), r"\\infty "),
    (re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])"), r"\\pi "),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])"), r"\\text{degree}"),
    (re.compile(r"\\%|%"), r"\\text{percent}"),
    (re.compile(r"\^\s*\{?\s*\\prime\s*\}?"), "'"),
    (re.compile(r"\\?€"), r"\\text{euro}"),
    (re.compile(r"\\?£"), r"\\text{pound}"),
)  # fmt: skip
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z]{2,}|[()\[\]{},$%!])")
_DOLLAR = re.compile(r"\\\$")
_LONE_DOLLAR = re.compile(r"\A\s*\$\s*(?=\d|\.\d)[^$]*\Z")


def spell(answer: str) -> str:
    """The answer in one spelling."""
    text = _unicode(answer) if not answer.isascii() else answer
    text = text.strip().strip("*").strip()
    if "\\\\" in text and r"\begin" not in text:
        text = _DOUBLED.sub(r"\\", text)  # escaped once too often, as in JSON
    text = _dollars(text)
    text = _WORDS.sub(_word, text)
    text = _PLAIN_ROOT.sub(r"\\sqrt{\1}", text)
    if not text.isalnum():
        for pattern, replacement in _RULES:
            text = pattern.sub(replacement, text)
        text = _brace_arguments(text)
    text = re.sub(r"\s+", " ", text).strip()
    return _trim(text)


def _unicode(text: str) -> str:
    exponent = {ord(a): b for a, b in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True)}
    text = _SUPERSCRIPT.sub(lambda match: "^{" + match[0].translate(exponent) + "}", text)

    def root(match: re.Match[str]) -> str:
        inside = match[1] or ""
        return r"\sqrt" + (inside if inside in ("{", "(", "") else f"{{{inside}}}")

    text = _ROOT.sub(root, text.translate(_UNICODE))
    return unicodedata.normalize("NFKC", re.sub(r"\\sqrt\(([^()]*)\)", r"\\sqrt{\1}", text))


def _dollars(text: str) -> str:
    """Without delimiters of formulas; a dollar that is money becomes a unit."""
    if "$" not in text and "\\(" not in text and "\\[" not in text and "\\)" not in text:
        return text
    if _LONE_DOLLAR.match(text):
        text = text.replace("$", r"\$", 1)
    text = re.sub(r"(?<!\\)\$", "", _DOLLAR.sub(r"\\text{dollar}", text))
    return re.sub(r"(?<!\\)\\[()\[\]](?!\s*\d+(?:pt|em|ex))", " ", text)


def _word(match: re.Match[str]) -> str:
    word = match[1].replace("~", " ").strip()
    if _JOINING.fullmatch(f" {word} "):
        return f" {word.strip(', ')} "
    if len(word) == 1 and not match[0].startswith((r"\text", r"\mbox")):
        return word  # \mathrm{e}
    if re.fullmatch(r"\W*[\d.,/ ()-]*", word):
        return f" {word} "
    return rf"\text{{{word}}}"


def _brace_arguments(text: str) -> str:
    r"""\frac12, \frac1{72}, \frac{\sqrt3}2, \frac 59 and \sqrt2 with braces."""
    if r"\sqrt" in text:
        text = re.sub(r"\\sqrt\s*(\d|[a-zA-Z])", r"\\sqrt{\1}", text)
    at = 0
    while (at := text.find(r"\frac", at)) >= 0:
        at += len(r"\frac")
        start = at
        for _ in range(2):
            start, text = _brace_argument(text, start)
    return text


def _brace_argument(text: str, start: int) -> tuple[int, str]:
    """(where the argument that begins at `start` ends, the text with braces around it)."""
    while text[start : start + 1] == " ":
        text = text[:start] + text[start + 1 :]
    if text[start : start + 1] == "{":
        depth = 0
        for brace in re.finditer(r"(?<!\\)[{}]", text[start:]):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                return start + brace.end(), text
        return len(text), text
    if text[start : start + 1].isalnum():
        return start + 3, f"{text[:start]}{{{text[start]}}}{text[start + 1 :]}"
    return start, text


def _trim(text: str) -> str:
    """Without what a sentence leaves behind an answer."""
    while text and (text[-1] in ".,;:" or (text[-1] == "\\" and text[-2:] != "\\\\")):
        text = text[:-1].rstrip()
    return text.lstrip(",;: ")
