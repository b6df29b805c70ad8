"""Defines styles, canvases and saving of all figures: inline SVG of the page, PNG of the card.

For the page, matplotlib draws in placeholder colours, and CSS variables of the page replace them.
One drawing serves light, dark and print. Equal figures give equal bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, RULE, ACCENT, LIMIT = "#0000a1", "#0000a2", "#0000a3", "#0000a4", "#0000a5"
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", ACCENT: "accent", LIMIT: "fail"}
WIDTH, HEIGHT = 430, 290  # CSS px
PANEL_INCHES = (4.2, 2.8)  # size of one panel of the card in inches
PAGE_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "camelpress",
    "text.parse_math": False,  # keep dollar signs in names
    "text.color": INK,
    "font.size": 13,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelpad": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 6),
    "grid.color": RULE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.constrained_layout.use": True,
}
CARD_STYLE = {
    "axes.prop_cycle": "cycler(color=['#3b6ea5'])",
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
}
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
NAMESPACE, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


class SvgFigure(NamedTuple):
    """Figure with its title and caption."""

    title: str
    svg: Markup
    caption: str


@contextmanager
def figure_style(params: Mapping[str, Any]) -> Iterator[None]:
    """Applies `PAGE_STYLE` or `CARD_STYLE` instead of any matplotlibrc.

    The browser draws the letters with its own fonts, so a glyph missing in matplotlib does no harm.
    """
    with style.context(["default", {**params}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def new_figure(height: int) -> tuple[Figure, Axes]:
    """Creates an empty figure of the page's width and `height` CSS pixels."""
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    return figure, figure.add_subplot()


def new_panels(count: int) -> tuple[Figure, list[Axes]]:
    """Creates an empty figure of the card with panels side by side."""
    figure = Figure(figsize=(PANEL_INCHES[0] * count, PANEL_INCHES[1]))
    return figure, [*figure.subplots(1, count, squeeze=False)[0]]


def finish_drawing(figure: Figure, name: str, title: str, caption: str) -> SvgFigure:
    """The finished figure; title and caption are also what a screen reader says of it."""
    return SvgFigure(title, to_inline_svg(figure, name, f"{title}. {caption}"), caption)


def to_inline_svg(figure: Figure, name: str, described: str) -> Markup:
    """The figure as an `<svg>` element; `name` keeps its ids apart from those of its neighbours.

    Args:
        described: what a reader hears who does not see the figure.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        for child in [*element]:
            if child.tag in (f"{NAMESPACE}metadata", f"{NAMESPACE}style"):
                element.remove(child)
        element.tag = element.tag.removeprefix(NAMESPACE)
        attributes = {
            key.removeprefix(XLINK): _attribute(key.removeprefix(XLINK), value, name)
            for key, value in element.items()
        }
        element.attrib.clear()
        element.attrib.update(attributes)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": described}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    for colour, variable in VARIABLES.items():
        value = value.replace(colour, f"var(--{variable})")
    return value.replace("url(#", f"url(#{name}-")


def write_png(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG without metadata."""
    figure.savefig(path, format="png", metadata={"Software": None})


def axis_label(name: str, *, longest: int = 22) -> str:
    """Makes a name printable and shortens its middle for an axis."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    if len(shown) <= longest:
        return shown
    tail = longest // 2
    return f"{shown[: longest - tail - 1]}…{shown[-tail:]}"


def ascii_axis_label(name: str) -> str:
    """Shortens a name and replaces signs outside ASCII and signs of matplotlib's mathematics."""
    shown = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in name)
    return shown.replace("$", "?")[:24]
