"""The study as a workflow: what a step's code is, how it runs, and how it outlives being killed.

`python -m cag_utils.workflow study ARGS` is snakemake with a lock that dies with its process;
`python -m cag_utils.workflow notebook IN OUT ARGS` is papermill with an encrypted kernel.
"""

import ast
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

PACKAGE = Path(__file__).parent
TAG = "CAG_STUDY_PROCESS"  # in the environment of all that a study starts: which one, and where
PLAIN = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
FOLLOW = "CAG_END_WITH_PARENT"  # set by `launch`, not by whoever calls accelerate by hand
SHOWN_LINES = 15  # of a failed process's last words


def notebook_sources(notebook: Path) -> list[Path]:
    """Return the notebook, then every module of the package that it reaches, in name order."""
    found: set[Path] = set()
    pending = set(_read_code(notebook)[1])
    while pending:
        path = pending.pop()
        if path not in found:
            found.add(path)
            pending |= _read_code(path)[1]
    return [notebook, *sorted(found)]


def code_digest(notebook: Path) -> str:
    """Return a hash of the code that a notebook runs: its cells', and that of modules it reaches.

    Snakemake keeps it with a step's outputs: a step is stale when code behind it changed. Prose,
    outputs, metadata, comments, layout and file times do not count: opening a notebook in
    JupyterLab changes nothing, nor does another branch and back.
    """
    total = hashlib.sha256()
    for path in notebook_sources(notebook):
        total.update(f"{path.name}\n{_read_code(path)[0]}\n".encode())
    return total.hexdigest()


@functools.cache
def _read_code(path: Path) -> tuple[str, frozenset[Path]]:
    """The code of a module or notebook without comments, and the package's files it imports."""
    text = path.read_text(encoding="utf-8")
    cells = [text]
    if path.suffix == ".ipynb":
        code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        cells = ["".join(cell["source"]) for cell in code]
    dumped, files = [], set()
    for cell in cells:
        try:
            tree = ast.parse(cell)
        except SyntaxError:  # a magic, or a cell that somebody is writing: it counts as it stands
            dumped.append(cell)
            continue
        dumped.append(ast.dump(tree))
        files |= imported_files(tree)
    return "\n".join(dumped), frozenset(files)


def imported_files(tree: ast.Module, package: Path = PACKAGE) -> set[Path]:
    """Return the package's files that a parsed source imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = (name.split(".")[1:] for name in names if name.split(".")[0] == package.name)
    candidates = (package.joinpath(*parts).with_suffix(".py") for parts in ours if parts)
    return {path for path in candidates if path.is_file()}


def run_study(arguments: list[str]) -> None:
    """Run snakemake; go on where an earlier one was killed, and leave no process behind.

    The lock is the kernel's (flock): it ends with the process that holds it, however that dies.
    Whoever holds it knows that snakemake's own lock files are a dead one's, and that processes
    tagged with this folder have lost their study. A watcher kills those as soon as it is left.
    What a dead study left in Slurm's queue is known by the folder, too, and is cancelled.

    Raises:
        SystemExit: Always; with one line that names the process if another study runs here.
    """
    _do_without_home()
    from snakemake.cli import main as snakemake
    from snakemake.cli import parse_args

    arguments = ["--rerun-incomplete", *arguments]
    _, given = parse_args(arguments)  # a profile's words, too
    if given.dryrun:
        snakemake(arguments)
    folder = Path(given.directory or ".").resolve()
    state = folder / ".snakemake"
    state.mkdir(parents=True, exist_ok=True)
    lock, pid = FileLock(state / "study.lock"), state / "study.pid"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _refuse(folder, pid.read_text(encoding="utf-8") if pid.exists() else "starting")
    pid.write_text(f"{os.getpid()}", encoding="utf-8")
    end_processes(lambda tag: tag.partition(" ")[2] == str(folder))
    if given.executor == "slurm":
        name = slurm_name(folder)
        end_jobs(name)
        arguments += ["--slurm-jobname-prefix", name]
    if left := [path for path in (state / "locks").glob("*.lock") if path.is_file()]:
        if (other := _plain_snakemake(folder)) is not None:
            _refuse(folder, other)
        for path in left:
            path.unlink()
    tag = f"{uuid.uuid4().hex} {folder}"
    watch = [sys.executable, "-m", "cag_utils.workflow", "watch", tag]
    # it reads until this process, the pipe's only writer, is gone; Ctrl-C does not reach it
    watcher = subprocess.Popen(watch, stdin=subprocess.PIPE, start_new_session=True)
    os.environ[TAG] = tag
    try:
        snakemake(arguments)
    finally:
        watcher.communicate()


def _refuse(folder: Path, process: int | str) -> None:
    sys.exit(
        f"A study is already running in {folder} (process {process}): wait for it, or end it with "
        f"`kill {process}` and give the command again."
    )


def _do_without_home() -> None:
    """Let libraries keep their files elsewhere where the home cannot be written, as on many nodes.

    Models that somebody has put into such a home are still found there.
    """
    home = Path.home()
    if os.access(home, os.W_OK):
        return
    place = tempfile.mkdtemp(prefix="cag_home_")  # nobody else's: IPython runs what lies there
    sys.stderr.write(f"{home} cannot be written: caches go to {place}\n")
    os.environ.setdefault("HF_HOME", str(home / ".cache" / "huggingface"))
    for name in ("XDG_CACHE_HOME", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        os.environ.setdefault(name, place)


def _plain_snakemake(folder: Path) -> int | None:
    """Process number of a snakemake in this folder that was not started here."""
    for process in psutil.process_iter():
        # it may end between listing and asking, or be somebody else's
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = [Path(word).name for word in process.cmdline()[:3]]
            if "snakemake" in words and Path(process.cwd()) == folder:
                return process.pid
    return None


def slurm_name(folder: Path) -> str:
    """Return how the names of a study's jobs in Slurm's queue begin: its folder decides."""
    return f"cag_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"


def end_jobs(name: str) -> None:
    """Cancel the caller's jobs in Slurm's queue whose names begin so, and wait until they are gone.

    A study that was killed cannot do it: its jobs would write beside those of its successor.
    """
    ask = ["squeue", "--me", "--noheader", "--format=%F %j"]
    while True:
        found = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.splitlines()
        left = {line.split()[0] for line in found if line.split()[1].startswith(f"{name}_")}
        if not left:
            return
        subprocess.run(["scancel", *left], check=False)
        time.sleep(1)


def end_processes(is_meant: Callable[[str], bool]) -> None:
    """Kill the processes that a study started whose tag `is_meant`.

    A kernel runs in a session of its own and its workers in theirs, so no process group holds
    them all; the environment that they inherit does.
    """
    for _ in range(6):  # one of them may have started another meanwhile
        found = [x for x in psutil.process_iter() if x.pid != os.getpid() and is_meant(_tag(x))]
        if not found:
            break
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=10)


def _tag(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # gone, or not ours
        return process.environ().get(TAG, "")
    return ""


def run_notebook(arguments: list[str]) -> None:
    """Run papermill's command line with CurveZMQ: a kernel on plain TCP warns on every start."""
    import zmq
    from papermill.cli import papermill
    from papermill.engines import NBClientEngine, papermill_engines
    from traitlets.config import Config

    class Encrypted(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **settings):
            policy = "auto" if zmq.has("curve") else "disabled"  # a zmq built without libsodium
            safe = Config(KernelManager={"transport_encryption": policy})
            return super().execute_managed_notebook(nb_man, kernel_name, config=safe, **settings)

    papermill_engines.register(None, Encrypted)
    papermill(arguments, prog_name="papermill")


def launch(
    module: str, argument: Path, count: int, log: Path | None = None, config: str | Path = ""
) -> None:
    """Run `python -m MODULE ARGUMENT` in several processes, one a GPU, or over gloo on a CPU.

    Args:
        module: Calls `follow_parent` before it does anything slow.
        log: Gets what they print, while they run; None shows it here.
        config: Accelerate's YAML; plain data parallelism if empty.

    Raises:
        RuntimeError: A process failed; the message ends with its last words, if there is a log.
    """
    # accelerate 1.15's `--cpu` would run one process, whatever is asked; modules choose gloo
    how = ["--config_file", str(config)] if config else PLAIN
    command = [sys.executable, "-m", "accelerate.commands.launch", *how, "--num_processes"]
    command += [str(count), "--main_process_port", "0", "--module", module, str(argument)]
    with log.open("wb") if log else contextlib.nullcontext() as out:
        pipes = {"stdout": out, "stderr": out, "env": os.environ | {FOLLOW: "1"}}
        with subprocess.Popen(command, stdin=subprocess.PIPE, **pipes) as process:
            code = process.wait()  # the pipe stays open for as long as this process lives
    if code:
        words = f":\n{_last_words(log)}" if log else "; see the output above"
        raise RuntimeError(f"training on {count} processes failed{words}")


def _last_words(log: Path) -> str:
    """The end of the first traceback, or of everything."""
    lines = [x for x in log.read_text(encoding="utf-8").splitlines() if x.strip()]
    last = re.compile(r"(\[rank\d+\]: )?\w*(Error|Exception)\b")
    end = next((i for i, x in enumerate(lines, 1) if last.match(x)), len(lines))
    return "\n".join(lines[max(0, end - SHOWN_LINES) : end])


def follow_parent(scratch: Path | None = None) -> None:
    """End this process when the one that called `launch` ends, also after a kill.

    An orphan would train on, and be a second writer in the folder of a rerun.

    Args:
        scratch: Folder to remove then: after a kill nobody else does.
    """

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
        os._exit(1)

    if FOLLOW in os.environ:
        threading.Thread(target=wait, daemon=True).start()


def forget_kernel(model: dict, **_) -> None:
    """Keep what JupyterLab notes about the running kernel out of a notebook that it saves.

    JupyterLab writes the kernel's exact version into every notebook that is opened, which git would
    show as a change. `make lab` hands this to the server (`ContentsManager.pre_save_hook`), whose
    `model` of a file is changed in place.
    """
    if model["type"] == "notebook":
        model["content"]["metadata"].pop("language_info", None)


def _watch(arguments: list[str]) -> None:
    sys.stdin.buffer.read()
    end_processes(lambda tag: tag == arguments[0])


if __name__ == "__main__":
    known = {"study": run_study, "notebook": run_notebook, "watch": _watch}
    known.get("".join(sys.argv[1:2]), lambda _: sys.exit(__doc__))(sys.argv[2:])
