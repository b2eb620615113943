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
    pending = _imports("\n".join(code))
    while pending:
        path = pending.pop()
        if path not in found:
            found.add(path)
            pending |= _imports(path.read_text(encoding="utf-8"))
    return [notebook, *sorted(found)]


def _imports(source: str) -> set[Path]:
    """Files of the package that one source text imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = (name.split(".")[1:] for name in names if name.split(".")[0] == PACKAGE.name)
    candidates = (PACKAGE.joinpath(*parts).with_suffix(".py") for parts in ours if parts)
    return {path for path in candidates if path.is_file()}
