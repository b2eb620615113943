"""What a step depends on, and what is left of a study that dies: killed and broken on purpose."""

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE

import nbformat
import psutil
import pytest
import yaml
from ipykernel.kernelspec import get_kernel_dict
from jupyter_server.services.contents.filemanager import FileContentsManager

from cag_utils.study import root
from cag_utils.workflow import PACKAGE, TAG, code_digest, imported_files, notebook_sources
from tests.running import NOTEBOOKS

SPITEFUL = 'a "b" c\'d ($(touch pwned))'


def notebook(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), path)
    return path


def test_imports_are_followed_into_the_package_wherever_they_stand(tmp_path):
    inner = "def f():\n    import cag_utils.splits"
    path = notebook(tmp_path / "n.ipynb", "import os\nfrom cag_utils.study import open_run", inner)
    found = notebook_sources(path)
    wanted = {PACKAGE / f"{name}.py" for name in ("study", "profiles", "params", "splits")}
    assert found[0] == path and wanted <= set(found) and PACKAGE / "report.py" not in found
    assert notebook_sources(path) == found  # asking does not use up the answer
    alone = notebook(tmp_path / "m.ipynb", "import numpy", "%matplotlib inline", "half a cell (")
    assert notebook_sources(alone) == [alone]
    package = tmp_path / "cag_utils"  # modules of rooms within rooms count too
    for name in ("a/b/c.py", "a/b/d.py", "a/b.txt", "e.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    source = "from cag_utils.a.b import c\nfrom cag_utils.a.b.d import x\nimport cag_utils.e as z"
    wanted = {package / "a" / "b" / "c.py", package / "a" / "b" / "d.py", package / "e.py"}
    assert imported_files(ast.parse(source), package) == wanted


def test_code_makes_a_step_stale_and_nothing_else(tmp_path):
    def digest(*sources):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return code_digest(notebook(folder / "n.ipynb", *sources))

    first = digest("a = 1", "b = a + 1")
    assert digest("a = 1  # why", "b = (a +\n     1)") == first
    others = [("a = 2", "b = a + 1"), ("a = 1", "b = a + 1", "%time a"), ("a = 1\nb = a + 1",)]
    assert len({first, *(digest(*sources) for sources in others)}) == 4


@pytest.mark.parametrize("page", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_that_jupyterlab_opened_and_saved_has_the_same_bytes(page, tmp_path):
    shutil.copy(page, tmp_path)
    [hook] = re.findall(r"ContentsManager.pre_save_hook=(\S+)", (root() / "Makefile").read_text())
    server = FileContentsManager(root_dir=str(tmp_path), pre_save_hook=hook)
    model = server.get(page.name)
    kernel = get_kernel_dict()
    spec = {"name": "python3"} | {key: kernel[key] for key in ("display_name", "language")}
    model["content"]["metadata"]["kernelspec"] = spec
    model["content"]["metadata"]["language_info"] = {"name": "python", "version": "3.13.9"}
    server.save(model, page.name)
    assert (tmp_path / page.name).read_bytes() == page.read_bytes()
    text = {"name": "stdout", "output_type": "stream", "text": "1\n"}
    for cell in (x for x in model["content"]["cells"] if x["cell_type"] == "code"):  # and ran it
        cell |= {"execution_count": 7, "outputs": [text]}
    server.save(model, page.name)
    assert (tmp_path / page.name).read_bytes() != page.read_bytes()
    assert code_digest(tmp_path / page.name) == code_digest(page)


BEAT = """
import subprocess, sys, time
from pathlib import Path
def beat(name):
    with Path(name).open("a") as file:
        file.write(".")
    time.sleep(0.05)
"""
ENDLESS = f"""
code = {BEAT!r} + "\\nwhile True: beat('worker.txt')"
if not Path("go").exists():
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
while not Path("go").exists():
    beat("kernel.txt")
"""
TOY = """
import sys
from pathlib import Path
from cag_utils.workflow import code_digest
rule all:
    input: "done.txt"
rule step:
    output: "part.txt", "done.txt"
    log: "out.ipynb"
    params: code=code_digest(Path("n.ipynb"))
    shell: "touch part.txt; {sys.executable:q} -m cag_utils.workflow notebook --log-level WARNING "
        "--no-progress-bar n.ipynb {log:q}; touch done.txt"
"""


@pytest.fixture
def toy(tmp_path):
    """A study of one endless notebook that has a worker in a session of its own."""
    folder = tmp_path / SPITEFUL
    folder.mkdir()
    notebook(folder / "n.ipynb", BEAT, ENDLESS)
    (folder / "Snakefile").write_text(TOY, encoding="utf-8")
    yield folder
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if str(folder) in (process.environ().get(TAG, ""), process.cwd()):
                process.kill()


def begin(folder, *command, module="cag_utils.workflow"):
    env, call = os.environ | {"PYTHONPATH": str(root())}, [sys.executable, "-m", module, *command]
    return subprocess.Popen(call, cwd=folder, env=env, text=True, stdout=PIPE, stderr=PIPE)


def wait_for(condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def assert_silent(*paths):
    """What wrote into these files has stopped."""

    def quiet():
        before = [path.stat().st_size for path in paths]
        time.sleep(0.5)
        return [path.stat().st_size for path in paths] == before

    wait_for(quiet, 20)


def test_a_killed_study_leaves_nobody_writing_and_goes_on_by_the_same_command(toy):
    command = ["study", "--cores", "1"]
    first, written = begin(toy, *command), [toy / "kernel.txt", toy / "worker.txt"]
    wait_for(lambda: all(path.exists() for path in written))
    second = begin(toy, *command)
    refusal = second.communicate(timeout=180)[1].strip()
    assert second.returncode == 1 and len(refusal.splitlines()) == 1
    assert f"(process {first.pid})" in refusal and "already running" in refusal
    assert first.poll() is None
    dry = begin(toy, *command, "--dry-run")
    assert dry.communicate(timeout=180) and dry.returncode == 0
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert_silent(*written)
    assert list((toy / ".snakemake" / "locks").glob("*.lock"))  # a dead one's
    (toy / "go").touch()
    again = begin(toy, *command)
    said = again.communicate(timeout=180)[1]
    assert again.returncode == 0 and "without encryption" not in said, said
    assert (toy / "done.txt").exists() and not list(toy.parent.rglob("pwned"))
    shutil.copy(toy / "out.ipynb", toy / "n.ipynb")  # as somebody runs and saves it
    assert "Nothing to be done" in begin(toy, *command).communicate(timeout=180)[1]
    notebook(toy / "n.ipynb", BEAT, "1 + 1")
    stale = begin(toy, *command, "--dry-run").communicate(timeout=180)[0]
    assert "Params have changed" in stale


def test_orphans_that_nobody_watched_end_when_the_study_starts_again(toy):
    call = [sys.executable, "-c", BEAT + "\nwhile True: beat('worker.txt')"]
    tags = {TAG: f"0 {toy.resolve()}"}, {TAG: f"0 /x {toy.resolve()}"}  # the other is elsewhere
    orphan, other = (subprocess.Popen(call, cwd=toy, env=os.environ | tag) for tag in tags)
    (toy / "go").touch()
    try:
        assert begin(toy, "study", "--cores", "1").wait(timeout=180) == 0
        assert orphan.wait(timeout=5) == -signal.SIGKILL and other.poll() is None
    finally:
        other.kill()


def test_a_snakemake_started_by_hand_keeps_its_lock(toy):
    plain = begin(toy, "--cores", "1", module="snakemake")
    try:
        wait_for((toy / "part.txt").exists)
        second = begin(toy, "study", "--cores", "1")
        assert f"(process {plain.pid})" in second.communicate(timeout=180)[1]
        assert second.returncode == 1 and list((toy / ".snakemake" / "locks").glob("*.lock"))
    finally:
        plain.kill()


def test_a_kernel_ends_with_the_papermill_that_started_it(toy):
    alone = begin(toy, "notebook", "--no-progress-bar", "n.ipynb", "out.ipynb")
    wait_for((toy / "kernel.txt").exists)
    alone.send_signal(signal.SIGKILL)
    alone.wait()
    assert_silent(toy / "kernel.txt")


def dry_run(repository, *config):
    command = ["study", "--cores", "1", "--dry-run", "--printshellcmds"]
    done = begin(repository, *command, "--config", "profile=smoke", *config)
    return "".join(done.communicate(timeout=180)), done.returncode


def test_a_spiteful_path_neither_breaks_nor_runs_and_braces_are_refused(tmp_path):
    folder = tmp_path / SPITEFUL
    repository = folder / "repository"
    repository.mkdir(parents=True)
    (repository / "notebooks").symlink_to(root() / "notebooks")
    shutil.copy(root() / "Snakefile", repository)
    sheet = folder / "sheet ($(touch pwned)).csv"
    sheet.touch()
    said, code = dry_run(repository, f"out_root={folder}", f"scores_ja={sheet}")
    assert code == 0, said
    shell = re.findall(r"Shell command: (.* notebook .*)", said)
    assert len(shell) == 18  # 06 in Japanese, too: its readers are compared with it
    show = f"{shlex.quote(sys.executable)} -c 'import sys; print(sys.argv[1:])'"
    for line in shell:
        told = line.replace(f"{shlex.quote(sys.executable)} -m cag_utils.workflow", show)
        words = subprocess.check_output(["bash", "-c", told], text=True, cwd=tmp_path)
        options = ast.literal_eval(words)[6:]
        assert ["-r", "out_root", str(folder)] in [options[i : i + 3] for i in (0, 3)]
        assert len(options) % 3 == 0 and set(options[::3]) <= {"-p", "-r"}
    assert any(str(sheet) in shlex.split(line) for line in shell)
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()
    said, code = dry_run(root(), f"out_root={tmp_path}/a{{b}}")
    assert code == 1 and "no braces in the path" in said


@pytest.fixture
def make(tmp_path):
    """Make in a spiteful folder, with a Python that prints its arguments and fails at `ruff`."""
    folder = tmp_path / SPITEFUL
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "<%s>" "$@"; echo\n[ "$2" != ruff ]\n', encoding="utf-8")
    python.chmod(0o755)
    shutil.copy(root() / "Makefile", folder)
    for name in ("requirements.lock", "pyproject.toml", ".venv/installed"):  # oldest first
        (folder / name).touch()

    def run(*words, **more):
        env = {k: v for k, v in os.environ.items() if k not in ("PROFILE", "OUT_ROOT", "CONFIG")}
        command, pipes = ["make", "--silent", *words], {"stdout": PIPE, "stderr": PIPE}
        return subprocess.run(command, cwd=folder, env=env | more, text=True, check=False, **pipes)

    yield run
    assert not list(tmp_path.rglob("pwned"))


def test_make_runs_every_lane_though_one_fails_and_hands_paths_on_as_they_are(make):
    done = make("test")
    lanes = ["ruff", "not notebook and not appendix", "notebook and not appendix"]
    assert done.returncode != 0 and all(lane in done.stdout for lane in lanes)
    assert "<profile=phantom><out_root=outputs>" in make("study").stdout
    spiteful = make("study", OUT_ROOT=SPITEFUL, PROFILE="smoke", CONFIG=f"scores_ja={SPITEFUL}")
    assert f"<profile=smoke><out_root={SPITEFUL}><scores_ja={SPITEFUL}>" in spiteful.stdout
    assert "<out_root=/a $(touch pwned)>" in make("study", "OUT_ROOT=/a $$(touch pwned)").stdout


def test_the_slurm_profile_speaks_of_steps_that_there_are():
    rules = set(re.findall(r"^rule (\w+):", (root() / "Snakefile").read_text(), re.MULTILINE))
    path = PACKAGE / "templates" / "slurm" / "config.yaml"
    profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(profile["set-threads"]) | set(profile["set-resources"]) < rules
    assert profile["slurm-array-jobs"] in rules and profile["jobs"] > 6  # LoRA runs: all at once
