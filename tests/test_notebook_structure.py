import ast
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from cag_utils.profiles import profile_names

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FORBIDDEN = ("!pip", "%pip", "%cd", "sys.path", "tqdm.notebook", "except:", "/home/", "os.chdir")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def test_is_valid_and_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec"}
    assert all(not c.outputs and c.execution_count is None for c in code_cells(notebook))


def test_opens_with_a_question_and_its_facts_and_closes_with_what_was_found(path, notebook):
    head = notebook.cells[0]
    assert head.cell_type == "markdown" and head.source.startswith(
        f"# {path.stem.split('_')[0]} · "
    )
    assert "?" in head.source.splitlines()[0]
    for fact in ("Question", "Reads", "Writes", "Cost", "Run"):
        assert f"**{fact}**" in head.source
    assert "Research use only" in head.source
    assert "save_metrics" in code_cells(notebook)[-1].source
    last = notebook.cells[-1]
    assert last.cell_type == "markdown"
    assert all(f"**{word}" in last.source for word in ("Found", "Limit", "Try"))


def test_parameters_are_annotated_literals_and_nothing_is_derived(notebook):
    code = code_cells(notebook)
    tagged = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0] is code[1]
    declared = {}
    for line in ast.parse(tagged[0].source).body:
        assert isinstance(line, ast.AnnAssign)
        assert line.annotation.id in {"str", "int", "float", "bool"}
        declared[line.target.id] = (line.annotation.id, ast.literal_eval(line.value))
    assert {"profile", "out_root", "seed"} <= set(declared)
    [checked] = [x for x in ast.parse(code[2].source).body if isinstance(x, ast.ClassDef)]
    fields = [x for x in checked.body if isinstance(x, ast.AnnAssign)]
    # a run is named after what differs from these, also when somebody edits the cell
    assert declared == {x.target.id: (x.annotation.id, ast.literal_eval(x.value)) for x in fields}
    assert all("#" in line for line in tagged[0].source.splitlines() if ":" in line)
    told = next(x for x in tagged[0].source.splitlines() if x.startswith("profile:"))
    assert all(name in told for name in profile_names())
    assert ".read(globals())" in code[2].source and "open_run(" in code[2].source


def test_is_a_walkthrough_of_readable_size_and_leaves_the_machine_alone(notebook):
    code = code_cells(notebook)
    assert not [word for word in FORBIDDEN for c in code if word in c.source]
    lines = [len(c.source.splitlines()) for c in code]
    words = sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")
    assert 8 <= len(code) <= 22 and max(lines) <= 32 and sum(lines) <= 260
    assert 400 <= words <= 1550


@pytest.mark.parametrize("line, match", [
    ("profil = 'smoke'", "unknown parameter 'profil' \\(did you mean 'profile'"),
    ("seed = 'one'", "seed should be int"),
    ("profile = 'phantm'", "did you mean 'phantom'"),
])  # fmt: skip
def test_a_mistyped_parameter_stops_it_at_once(path, notebook, monkeypatch, tmp_path, line, match):
    """The cells down to `open_run`, as papermill runs them: with a cell of parameters put in."""
    imports, parameters, checked = (cell.source for cell in code_cells(notebook)[:3])
    given = f"# Parameters\n{line}\nout_root = {str(tmp_path)!r}\n"
    module = ModuleType("opened")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look
    vars(module)["In"] = ["", imports, parameters, given]
    for source in (imports, parameters, given):
        exec(source, vars(module))
    with pytest.raises(ValueError, match=match):
        exec(checked, vars(module))
    assert not any(tmp_path.iterdir())
