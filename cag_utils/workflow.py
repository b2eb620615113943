"""What a notebook depends on: the package's modules it imports, and theirs."""

import ast
import json
from pathlib import Path

PACKAGE = Path(__file__).parent


def notebook_sources(notebook: Path) -> list[Path]:
    """Return the notebook and every module of the package that it reaches by import.

    Snakemake compares these with a step's outputs: a step is stale when code behind it changed,
    and only then.

    Args:
        notebook: Path of an .ipynb.

    Returns:
        The notebook first, then modules in name order.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    found: set[Path] = set()
    pending = imported_files("\n".join(code))
    while pending:
        path = pending.pop()
        if path not in found:
            found.add(path)
            pending |= imported_files(path.read_text(encoding="utf-8"))
    return [notebook, *sorted(found)]


def imported_files(source: str, package: Path = PACKAGE) -> set[Path]:
    """Return the package's files that one source text imports, anywhere in it.

    Args:
        source: Python.
        package: Folder of the package.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = (name.split(".")[1:] for name in names if name.split(".")[0] == package.name)
    candidates = (package.joinpath(*parts).with_suffix(".py") for parts in ours if parts)
    return {path for path in candidates if path.is_file()}
