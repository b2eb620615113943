"""Several processes of one training through accelerate; none outlives the one that started it."""

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

PLAIN = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
FOLLOW = "CAG_END_WITH_PARENT"  # set by `launch`, not by whoever calls accelerate by hand
SHOWN_LINES = 15  # of a failed process's last words


def launch(
    module: str, argument: Path, count: int, log: Path | None = None, config: str | Path = ""
) -> None:
    """Run `python -m MODULE ARGUMENT` in several processes, one a GPU, or over gloo on a CPU.

    Args:
        module: Calls `follow_parent` before it does anything slow.
        argument: What it works on.
        count: Processes.
        log: Gets what they print, while they run; None shows it here.
        config: Accelerate's YAML; plain data parallelism if empty.

    Raises:
        RuntimeError: A process failed; the message ends with its last words, if there is a log.
    """
    # accelerate 1.15's `--cpu` would run one process, whatever is asked; modules choose gloo
    how = ["--config_file", str(config)] if config else PLAIN
    command = [sys.executable, "-m", "accelerate.commands.launch", *how, "--num_processes"]
    command += [str(count), "--main_process_port", "0", "--module", module, str(argument)]
    out = log.open("wb") if log else None
    try:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=os.environ | {FOLLOW: "1"}
        ) as process:
            code = process.wait()  # the pipe stays open for as long as this process lives
    finally:
        if out:
            out.close()
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
