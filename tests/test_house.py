"""The shape of the package: which room may use which, one name one meaning, how large it is."""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from cag_utils import reference
from cag_utils.reference import ROOMS, TOP, draw_rooms, read_imports, room_of, room_sizes
from cag_utils.workflow import PACKAGE, notebook_sources
from tests.conftest import ROOT

STUDY = {TOP, "cines", "keyframes", "corpus", "vlm", "scores", "paper", "desk"}
BESIDE = {"making", "audits"}  # how the shipped weights were made, and the appendices' questions
BELOW_THE_PHANTOM = {"segments.py", "params.py"}


def forbidden_arrows(package):
    """Imports of a study room, or of the phantom, that point the wrong way, as `from -> to`."""
    wrong = []
    for path, imported in read_imports(package).items():
        room, name = room_of(path, package), path.relative_to(package).as_posix()
        for other in sorted(imported):
            target, to = room_of(other, package), other.relative_to(package).as_posix()
            beside = room in STUDY | {"phantom"} and target in BESIDE
            out = room == "phantom" and target != "phantom" and to not in BELOW_THE_PHANTOM
            if beside or out:
                wrong.append(f"{name} -> {to}")
    return wrong


def circle(arrows):
    """One circle of the arrows, from and to the same place; empty if there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return [str(place) for place in error.args[1]]
    return []


def shared_names(package):
    """Public functions and classes that two modules define, with the modules."""
    homes = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                homes[node.name].append(path.relative_to(package).as_posix())
    mains = {"main"}  # each command has one
    return {n: at for n, at in homes.items() if len(at) > 1 and n[0] != "_" and n not in mains}


def misleading(package):
    """Inits that hold anything (their imports would hide), modules that a package shadows."""
    full = [x for x in package.rglob("__init__.py") if x.read_text(encoding="utf-8")]
    hidden = [x for x in package.rglob("*.py") if (x.with_suffix("") / "__init__.py").exists()]
    return [x.relative_to(package).as_posix() for x in full + hidden]


def test_the_house_is_sound_and_so_is_the_small_one(house):
    for package in (PACKAGE, house({})):
        assert forbidden_arrows(package) == []
        assert shared_names(package) == {}
        assert misleading(package) == []
        assert circle(read_imports(package)) == []
        rooms = reference.room_arrows(package)
        assert circle({room: others - {TOP} for room, others in rooms.items() if room != TOP}) == []


def test_every_room_says_what_it_is_for():
    found = {room_of(path) for path in PACKAGE.rglob("*.py")} - {TOP}
    assert STUDY - {TOP} | BESIDE | {"phantom"} <= found
    for room in found:
        text = (PACKAGE / room / "README.md").read_text(encoding="utf-8")
        assert text.startswith("# ") and "otebook" in text, room


def test_the_house_stays_small():
    # 18,500 and 11,000 lines when the house was built; raised only with what an issue has added
    sizes = room_sizes()
    assert sizes["rooms.all.files"] <= 112 and sizes["rooms.all.lines"] <= 25_000
    tests = [path for path in (ROOT / "tests").rglob("*.py") if "benchmarks" not in path.parts]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in tests) <= 15_250
    notebooks = sorted((ROOT / "notebooks").glob("0*.ipynb"))
    reached = {path for notebook in notebooks for path in notebook_sources(notebook)[1:]}
    assert [path.stem[:2] for path in notebooks] == [f"0{i}" for i in range(9)]
    assert len(reached) <= 55


def test_the_readmes_picture_of_the_rooms_is_of_today():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert draw_rooms().join(ROOMS) in text, "run: make format"


# Small packages made up, so that each check is seen to fail.


@pytest.fixture
def house(tmp_path):
    """Make a small package, sound but for the given texts: `house({"vlm/sft.py": "x = 1"})`."""

    def build(files: dict[str, str]) -> Path:
        for name, text in (SOUND | files).items():
            path = tmp_path / "cag_utils" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / "cag_utils"

    return build


SOUND = {
    "__init__.py": "", "params.py": "", "segments.py": "class Segment: ...",
    "vlm/sft.py": "from cag_utils.params import x",
    "scores/rubric.py": "from cag_utils.vlm import sft\nfrom cag_utils import segments",
    "phantom/anatomy/tree.py": "from cag_utils.segments import Segment",
    "phantom/__main__.py": "from cag_utils.phantom.anatomy import tree",
    "making/tower.py": "import cag_utils.vlm.sft",
    "audits/leakage.py": "gain = 1",
}  # fmt: skip


@pytest.mark.parametrize("name, text, wrong", [
    ("vlm/sft.py", "def f():\n    from cag_utils.making import tower", "making/tower.py"),
    ("params.py", "import cag_utils.audits.leakage", "audits/leakage.py"),
    ("phantom/anatomy/tree.py", "from cag_utils.making.tower import x", "making/tower.py"),
    ("phantom/anatomy/tree.py", "from cag_utils.vlm.sft import x", "vlm/sft.py"),
])  # fmt: skip
def test_an_arrow_the_wrong_way_is_seen(house, name, text, wrong):
    assert forbidden_arrows(house({name: text})) == [f"{name} -> {wrong}"]


def test_circles_of_modules_and_of_rooms_are_seen(house):
    package = house({"vlm/sft.py": "from cag_utils.scores import rubric"})
    assert {Path(at).name for at in circle(read_imports(package))} == {"sft.py", "rubric.py"}
    # Two files each way: no module imports itself, but the rooms do.
    package = house({"vlm/lora.py": "from cag_utils.scores import rubric"})
    (package / "vlm" / "sft.py").write_text("", encoding="utf-8")
    assert circle(read_imports(package)) == []
    assert set(circle(reference.room_arrows(package))) == {"vlm", "scores"}


def test_a_second_meaning_of_a_name_a_full_init_and_a_hidden_module_are_seen(house):
    package = house({"vlm/lora.py": "def Segment(): ...", "vlm/sft.py": "def _own(): ..."})
    assert shared_names(package) == {"Segment": ["segments.py", "vlm/lora.py"]}
    package = house({"params/__init__.py": "", "vlm/__init__.py": "from x import y"})
    assert misleading(package) == ["vlm/__init__.py", "params.py"]


def test_sizes_and_picture_count_what_is_there(house, tmp_path):
    package = house({"vlm/lora.py": "a = 1\nb = 2\n"})
    sizes = room_sizes(package)
    assert sizes["rooms.vlm.files"] == 2 and sizes["rooms.vlm.lines"] == 3
    assert sizes["rooms.top.files"] == sizes["rooms.top.lines"] == 1  # the others are empty
    drawn = draw_rooms(package)
    assert "    scores --> vlm\n" in drawn and "--> top" not in drawn and "vlm --> " not in drawn
    assert 'vlm["vlm<br>2 files, 0.0k lines"]' in drawn
    readme = tmp_path / "README.md"
    readme.write_text("# House\n" + "old\n".join(ROOMS) + "\nend\n", encoding="utf-8")
    reference.replace_between(readme, *ROOMS, drawn)
    assert readme.read_text(encoding="utf-8") == "# House\n" + drawn.join(ROOMS) + "\nend\n"
