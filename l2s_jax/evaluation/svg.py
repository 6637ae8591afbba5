"""From a drawing to one string of inline SVG.

Lives here: what every figure of a page looks like, and the writer. Not here: the figures
(`plots`, `curation_plots`).

Figures are built with the object interface, so that no global state is touched. Ink, grid and
paper are written as CSS variables, so that a page in dark mode recolours them.
"""

import html
import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Stand-ins that the SVG writer can spell; `to_svg` turns them into variables of the page.
INK, FAINT, PAPER = "#010203", "#040506", "#070809"
_VARIABLES = {
    INK: "var(--ink, #1c2733)",
    FAINT: "var(--line, #d5dbe3)",
    PAPER: "var(--paper, #ffffff)",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, searchable, small
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a stage's name is a dollar
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def slug(name: str) -> str:
    """The name in lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def to_svg(
    name: str, label: str, draw: Callable[[Figure], None], *, width: float, height: float
) -> str:
    """The drawn figure as an `<svg>` element that can stand in a page among others."""
    style: dict[Any, Any] = _STYLE | {"svg.hashsalt": name}  # ids of this figure, every time
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        page = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # no links, no clock
        FigureCanvasSVG(figure).print_svg(page, metadata=nothing)
    svg = page.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML declaration, which HTML does not know
    # Ids must differ between the figures of a page, or a clip path is looked up in another one.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None, "the SVG writer always gives a viewBox"
    head = (
        f'<svg role="img" aria-label="{html.escape(label)}" {box.group()}'
        # Below two thirds of its size the text is too small to read: the figure scrolls instead.
        f' style="width:100%;max-width:{width * 96:.0f}px;min-width:{width * 64:.0f}px"'
        ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return head + svg[svg.index(">") + 1 :]
