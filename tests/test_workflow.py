import nbformat

from cag_utils.workflow import PACKAGE, imported_files, notebook_sources


def notebook(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_imports_are_followed_into_the_package(tmp_path):
    path = notebook(tmp_path / "n.ipynb", "import os\nfrom cag_utils.study import open_run")
    found = notebook_sources(path)
    assert found[0] == path
    assert {PACKAGE / f"{name}.py" for name in ("study", "settings", "params")} <= set(found)
    assert PACKAGE / "report.py" not in found


def test_modules_of_the_phantom_and_plain_imports_count_too(tmp_path):
    sources = ["from cag_utils.phantom import cohort", "def f():\n    import cag_utils.report"]
    found = notebook_sources(notebook(tmp_path / "n.ipynb", *sources))
    assert {PACKAGE / "phantom" / "cohort.py", PACKAGE / "report.py"} <= set(found)


def test_modules_of_rooms_within_rooms_count_too(tmp_path):
    package = tmp_path / "cag_utils"
    for name in ("a/b/c.py", "a/b/d.py", "a/b.txt", "e.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    source = "from cag_utils.a.b import c\nfrom cag_utils.a.b.d import x\nimport cag_utils.e as z"
    wanted = {package / "a" / "b" / "c.py", package / "a" / "b" / "d.py", package / "e.py"}
    assert imported_files(source, package) == wanted


def test_a_notebook_without_the_package_depends_on_itself_alone(tmp_path):
    path = notebook(tmp_path / "n.ipynb", "import numpy")
    assert notebook_sources(path) == [path]
