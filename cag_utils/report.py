"""Figures and tables, written the same way from every notebook, and the page that holds them."""

import base64
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import pandas as pd

from cag_utils.backbones import BACKBONES
from cag_utils.params import check_choice
from cag_utils.study import PACKAGE
from cag_utils.tables import write_table

# One name and one colour per model, across every figure: `backbones` has them, and the model behind
# an API. The paper lists untuned models first, and of these Gemma3.
_BASES = sorted(BACKBONES, key=lambda name: name != "gemma3")
_MODELS = [(name, 0) for name in _BASES] + [(name, 1) for name in BACKBONES]
_ENDINGS = (("_base", " (unfine-tuned)"), ("_lora", " w/LoRA"))
MODEL_NAMES = {"o4-mini": "o4-mini"} | {
    f"{name}{_ENDINGS[k][0]}": f"{BACKBONES[name].title}{_ENDINGS[k][1]}" for name, k in _MODELS
}
MODEL_COLOURS = {"o4-mini": "#999999"} | {
    f"{name}{_ENDINGS[k][0]}": BACKBONES[name].colours[k] for name, k in _MODELS
}


def save_figure(fig: plt.Figure, data: pd.DataFrame, stem: Path) -> list[Path]:
    """Write a figure and its numbers: .png (200 dpi), .svg, .csv; the same figure, the same bytes.

    Args:
        fig: Finished figure; its size is set by the notebook, in inches.
        data: The tidy rows that were plotted, one row a mark.
        stem: Path without suffix, `run.dir / "figure5_vlscore"`.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.parent / f"{stem.name}{suffix}" for suffix in (".png", ".svg", ".csv")]
    with plt.rc_context({"svg.hashsalt": stem.name}):  # a salt and no date: same bytes each run
        fig.savefig(paths[0], dpi=200, bbox_inches="tight", metadata={"Software": None})
        fig.savefig(paths[1], bbox_inches="tight", metadata={"Date": None})
    write_table(data, paths[2])
    return paths


def save_table(table: pd.DataFrame, stem: Path, caption: str, digits: int = 3) -> list[Path]:
    """Write a table for machines, for readers and for LaTeX: .csv, .md, .tex; return the paths.

    Args:
        table: One row a model, split or figure; the index is not written.
        stem: Path without suffix, `run.dir / "table3_vlscore"`.
        caption: One sentence: what, on whom, n.
        digits: Decimals in .md and .tex; the .csv keeps full precision.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.parent / f"{stem.name}{suffix}" for suffix in (".csv", ".md", ".tex")]
    write_table(table, paths[0])
    shown = rounded(table, digits)
    plain = shown.to_markdown(index=False).replace("<", "&lt;")  # a note's HTML stays text
    paths[1].write_text(f"{caption}\n\n{plain}\n", encoding="utf-8")
    style = shown.style.hide(axis="index").format(escape="latex")
    tex = style.to_latex(caption=caption, hrules=True, position_float="centering")
    paths[2].write_text(tex, encoding="utf-8")
    return paths


def copy_result(source: Path, target: Path) -> list[Path]:
    """Copy a saved table or figure, all of its files; both paths are without suffix.

    Raises:
        FileNotFoundError: Nothing was saved under `source`.
    """
    found = [path for path in sorted(source.parent.glob(f"{source.name}.*")) if path.is_file()]
    if not found:
        raise FileNotFoundError(f"no table or figure was saved as {source}.*")
    copies = [target.parent / f"{target.name}{path.suffix}" for path in found]
    for path, copy in zip(found, copies, strict=True):
        shutil.copyfile(path, copy)
    return copies


def rounded(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """Return the table as text: floats rounded, missing values as a dash."""

    def cell(value: object) -> str:
        if pd.isna(value):
            return "–"
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    return table.map(cell)


def estimate_cell(value: float, low: float, high: float, digits: int = 3) -> str:
    """Format `0.912 (0.880 to 0.941)`; ValueError if the interval does not hold the estimate."""
    if not low <= value <= high:
        raise ValueError(f"estimate {value} lies outside its interval [{low}, {high}]")
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def paper_table(name: str) -> pd.DataFrame:
    """Return one of the paper's printed tables, a file of `cag_utils/paper/`.

    Raises:
        ValueError: There is no such table.

    Source:
        Nakamura et al., CAG-VLM, Tables 1 to 4 and the figures printed in its text.
    """
    known = {path.stem: path for path in (PACKAGE / "paper").glob("*.csv")}
    return pd.read_csv(known[check_choice("table of the paper", name, known)])


def scored_by(reader: str) -> str:
    """Say who stands behind scores: notebook 07's `reader`, names with commas or "rubric"."""
    if reader == "rubric":
        return "the rubric, a program (no reader and no physician)"
    return f"reader{'s' * (', ' in reader)} {reader}"


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
        notice: Shown first, in a box: what these data are, and what they are not.

    Raises:
        FileNotFoundError: A figure is missing.
    """
    loader = jinja2.FileSystemLoader(PACKAGE / "templates")
    engine = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    engine.filters |= {
        "picture": lambda png: (
            "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()
        ),
        "table": lambda table: rounded(table).to_html(index=False, border=0, escape=True),
        "paragraphs": lambda text: [" ".join(x.split()) for x in text.split("\n\n") if x.strip()],
    }
    page = engine.get_template("report.html.j2")
    html = page.render(title=title, notice=notice, facts=facts, sections=sections)
    path.write_text(html, encoding="utf-8")
    return path
