"""The look of the report: small functions from text to HTML, and the style sheet.

Lives here: escaping, elements, number formats, the frame of the page. Not here: what the page says
(`report`), the figures (`plots`).

Rule: functions take plain text and escape it, unless a parameter says `markup`.
"""

import html
from collections.abc import Iterable, Sequence

STYLE = """
:root{--paper:#fff;--ground:#f5f6f8;--ink:#1c2733;--soft:#5d6b7a;--line:#dde2e9;--link:#0072b2;
--good:#0b7a4b;--good-ground:#e3f5ec;--bad:#b3261e;--bad-ground:#fdeae8;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--paper:#1a2028;--ground:#12161c;--ink:#e4e9ef;
--soft:#9aa7b5;--line:#333d49;--link:#5cb3e8;--good:#6fd3a2;--good-ground:#153526;--bad:#ff9a92;
--bad-ground:#43201d}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);line-height:1.55;
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 20px 80px}
h1{font-size:30px;line-height:1.2;letter-spacing:-.015em;margin:0 0 12px}
h2{font-size:20px;letter-spacing:-.01em;margin:0 0 10px}
h3{font-size:15px;margin:22px 0 8px}
p{margin:0 0 12px;max-width:76ch}
.lead{font-size:17px}.soft,figcaption{color:var(--soft);font-size:14px}
section{background:var(--paper);border:1px solid var(--line);border-radius:12px;
padding:22px 24px;margin:18px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:14px;
margin:4px 0 14px}
.tile{border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tile b{display:block;font-size:30px;line-height:1.15;letter-spacing:-.02em;
font-variant-numeric:tabular-nums}
.tile .name{font-size:13px;color:var(--soft);margin:0 0 6px;min-height:3em}
.tile .note{font-size:14px;margin:4px 0 0}
.scroll{overflow-x:auto;margin:0 0 12px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding:0 0 6px}
th,td{padding:7px 12px 7px 0;text-align:left;border-bottom:1px solid var(--line);
vertical-align:baseline}
thead th{font-size:12.5px;color:var(--soft);font-weight:600;white-space:nowrap}
tbody th{font-weight:600}
td.n,th.n{text-align:right;white-space:nowrap}
tr.first>*{border-top:2px solid var(--line)}
small{color:var(--soft);font-size:12px;white-space:nowrap}
.pill{display:inline-block;border-radius:99px;padding:1px 10px;font-size:12.5px;font-weight:600;
white-space:nowrap}
.good{color:var(--good);background:var(--good-ground)}
.bad{color:var(--bad);background:var(--bad-ground)}
.plain{color:var(--soft);background:var(--ground)}
figure{margin:14px 0 4px;overflow-x:auto}figure svg{display:block;height:auto}
svg text{font-family:inherit!important}
details{border-top:1px solid var(--line);padding:8px 0}
summary{cursor:pointer;font-weight:600;font-size:15px}
.answer{border-left:3px solid var(--line);padding:2px 0 2px 14px;margin:14px 0}
.answer div{font-size:14.5px}
.answer.wrong{border-color:var(--bad)}.answer.right{border-color:var(--good)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--ground);border-radius:8px;
padding:10px 12px;margin:6px 0 0;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace;
max-height:340px;overflow-y:auto}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;margin:0 0 12px;font-size:14px}
dt{font-weight:600}dd{margin:0}
"""


def frame(title: str, body_markup: str) -> str:
    """The whole HTML document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body_markup}\n</main>\n</body>\n</html>\n"
    )


def text(tag: str, content: str, kind: str = "") -> str:
    """An element that holds `content`, escaped."""
    return wrap(tag, html.escape(content), kind)


def wrap(tag: str, markup: str, kind: str = "") -> str:
    """An element around ready markup; `kind` is its CSS class."""
    return f'<{tag} class="{kind}">{markup}</{tag}>' if kind else f"<{tag}>{markup}</{tag}>"


def section(title: str, *parts_markup: str) -> str:
    """A card with a heading."""
    return wrap("section", "\n".join([text("h2", title), *parts_markup])) + "\n"


def missing(what: str) -> str:
    """The one line that stands where a part of the page has no data."""
    return text("p", what, "soft")


def figure(svg_markup: str, caption: str) -> str:
    """A figure with what it shows written below."""
    return wrap("figure", svg_markup + text("figcaption", caption))


def details(title: str, *parts_markup: str, is_open: bool = False) -> str:
    """A part that folds away."""
    head = "<details open>" if is_open else "<details>"
    return head + text("summary", title) + "".join(parts_markup) + "</details>"


def pill(content: str, kind: str) -> str:
    """A short verdict; `kind` is good, bad or plain, and the words say the same as the colour."""
    return text("span", content, f"pill {kind}")


def table(
    head: Sequence[str],
    rows_markup: Iterable[Sequence[str]],
    *,
    num_words: int = 1,
    group_starts: frozenset[int] = frozenset(),
) -> str:
    """A table whose first column names the row.

    Args:
      rows_markup: cells are ready markup (`cell` and `pill` make it).
      num_words: columns from the left that hold words; numbers follow, flush right.
      group_starts: rows that open a group and get a rule above.
    """

    def kind(column: int) -> str:
        return "" if column < num_words else "n"

    names = "".join(text("th", name, kind(column)) for column, name in enumerate(head))
    lines = []
    for index, row in enumerate(rows_markup):
        cells = [
            wrap("td" if column else "th", markup, kind(column))
            for column, markup in enumerate(row)
        ]
        lines.append(wrap("tr", "".join(cells), "first" if index in group_starts else ""))
    inner = wrap("thead", wrap("tr", names)) + wrap("tbody", "\n".join(lines))
    return wrap("div", wrap("table", inner), "scroll")


def cell(content: str, aside: str = "") -> str:
    """Text of a table cell, with a smaller remark behind it."""
    return html.escape(content) + (" " + text("small", aside) if aside else "")


def percent(share: float) -> str:
    """0.9934 as "99.3 %"."""
    return f"{100 * share:.1f} %"


def signed(value: float, digits: int) -> str:
    """-0.351 with one digit as "−0.4", with a true minus sign; "0" where nothing is left."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else "0"


def points(difference: float) -> str:
    """A difference of shares in points, -0.0123 as "−1.2"."""
    return signed(100 * difference, 1)


def span(low_high: Sequence[float] | None, *, as_percent: bool = False) -> str:
    """An interval as "98.1–99.6"; empty where there is none."""
    if low_high is None:
        return ""
    scale = 100 if as_percent else 1
    return f"{scale * low_high[0]:.1f}–{scale * low_high[1]:.1f}"
