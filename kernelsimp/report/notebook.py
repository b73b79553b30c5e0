"""What a notebook shows of a scan: a table of its layers and the kernels of the most structured ones.

Fragments stand in somebody else's page, so they bring no style sheet and no script.
"""

from dataclasses import replace

from markupsafe import Markup, escape

from kernelsimp.records.scan import Scan
from kernelsimp.report.pictures.scan import family_pictures
from kernelsimp.report.tables.scan import most_structured, near_words, scan_layer_table
from kernelsimp.report.tables.table import Table

LAYERS = 12
"""Rows of the table of layers."""
DRAWN = 3
"""Layers whose kernels are drawn, and at most so many families of them."""


def scan_fragment(scan: Scan) -> Markup:
    """Return a scan as HTML: its layers, most structured first, and kernels of the first ones by family."""
    layers = scan_layer_table(scan)
    left = len(layers.rows) - LAYERS
    more = Markup("<p>and {} more layers</p>").format(left) if left > 0 else Markup("")
    words = near_words(scan)
    said = Markup("<p>{}</p>").format(words) if words else Markup("")
    drawn = replace(scan, layers=most_structured(scan)[:DRAWN])
    pictures = Markup("").join(family_pictures(drawn)[:DRAWN])
    return table_fragment(replace(layers, rows=layers.rows[:LAYERS])) + more + said + pictures


def table_fragment(table: Table) -> Markup:
    """Return a table as HTML, figures aligned right; cells are escaped."""

    def cell(tag: str, place: int, content: str) -> Markup:
        side = "left" if place in table.text else "right"
        return Markup('<{0} style="text-align: {1}">{2}</{0}>').format(Markup(tag), side, escape(content))

    heads = Markup("").join(cell("th", place, head) for place, head in enumerate(table.heads))
    rows = (
        Markup("").join(cell("td", place, content) for place, content in enumerate(row)) for row in table.rows
    )
    body = Markup("").join(Markup("<tr>{}</tr>").format(row) for row in rows)
    caption = Markup("<caption>{}</caption>").format(table.title)
    return Markup("<table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(caption, heads, body)
