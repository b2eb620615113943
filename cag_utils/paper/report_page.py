"""One page that a person can read top to bottom, with every picture inside the file."""

import base64
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pandas as pd

from cag_utils.report import rounded
from cag_utils.study import PACKAGE

TEMPLATES = PACKAGE / "templates"


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    text: str  # plain; an empty line starts a new paragraph
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)  # (caption, table)
    figures: list[tuple[str, Path]] = field(default_factory=list)  # (caption, PNG file)


def write_page(
    path: Path, title: str, notice: str, facts: dict[str, object], sections: list[Section]
) -> Path:
    """Write the report as one HTML file that needs nothing beside it; return its path.

    Args:
        path: Of the page.
        title: Its heading.
        notice: Shown first, in a box: what these data are, and what they are not.
        facts: Shown last: commit, versions, profile.
        sections: In reading order.

    Raises:
        FileNotFoundError: A figure is missing.
    """
    loader = jinja2.FileSystemLoader(TEMPLATES)
    engine = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    engine.filters |= {"picture": _picture, "table": _table, "paragraphs": _paragraphs}
    page = engine.get_template("report.html.j2")
    html = page.render(title=title, notice=notice, facts=facts, sections=sections)
    path.write_text(html, encoding="utf-8")
    return path


def _picture(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _table(table: pd.DataFrame) -> str:
    return rounded(table).to_html(index=False, border=0, escape=True)


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
