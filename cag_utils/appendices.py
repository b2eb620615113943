"""Notebooks beside the study: how the reference run calls them, and what it keeps of them."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from cag_utils.study import read_json, root


class Appendix(NamedTuple):
    """A notebook beside the study, and what of it is kept.

    Attributes:
        run: Its folder's name below `outputs/<profile>/<notebook>/`.
        files: Stems of the tables and figures.
        wanted: First letters of the metrics.
        stem: Put before the metrics' names.
    """

    run: str
    files: tuple[str, ...]
    wanted: tuple[str, ...]
    stem: str = ""


APPENDICES = {
    "A1_phantom": Appendix(
        "all",
        ("table_stills", "table_cines", "figure_realism", "figure_temporal", "figure_transfer"),
        ("realism.", "transfer."),
    ),
    "A3_leakage": Appendix(
        "all",
        ("shared_cases", "near_duplicates", "crossover", "figure_gain", "figure_pairs"),
        ("inflation_", "share_near_duplicate_"),
        "leakage.",
    ),
    "A6_ablations": Appendix(
        "conceptclip_gemma3_en",
        ("table_variants", "table_seen_or_said", "figure_losses", "figure_by_grade"),
        ("projector_first.", "longer.", "told.", "right.", "named_"),
        "ablation.",
    ),
}


def run_appendix(name: str, outputs: Path) -> dict[str, float]:
    """Run an appendix and return its headline figures.

    Args:
        name: One of `APPENDICES`.
        outputs: `outputs/<profile>/`.

    Returns:
        Of A1 how far the phantom is from real pictures and the transfer (`realism.*`, `transfer.*`;
        none where the real pictures' folder is absent); of A3 what a leaking split adds to the F1s
        and the shares of near duplicates (`leakage.*`); of A6 what holds the twins back
        (`ablation.*`).

    Raises:
        subprocess.CalledProcessError: The notebook failed.
    """
    appendix, notebook = APPENDICES[name], root() / "notebooks" / f"{name}.ipynb"
    folder = outputs / name / appendix.run
    folder.mkdir(parents=True, exist_ok=True)
    executed = folder / notebook.name
    command = [sys.executable, "-m", "papermill", str(notebook), str(executed)]
    subprocess.run([*command, "-p", "profile", outputs.name], cwd=root(), check=True)
    found = read_json(folder / "metrics.json")
    return {appendix.stem + k: v for k, v in found.items() if k.startswith(appendix.wanted)}


def copy_appendix(name: str, outputs: Path, folder: Path) -> None:
    """Copy an appendix's tables and figures under its name.

    Args:
        name: One of `APPENDICES`.
        outputs: `outputs/<profile>/`.
        folder: `outputs/reference/`.
    """
    appendix = APPENDICES[name]
    for path in sorted((outputs / name / appendix.run).iterdir()):
        if path.stem in appendix.files and path.suffix in {".md", ".png"}:
            shutil.copyfile(path, folder / f"{name}_{path.name}")
