"""Training in several processes: who does what, and how they are started (accelerate)."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cag_utils.networks import FrameSet, pick_device
from cag_utils.study import read_json, write_json

SHOWN_LINES = 15  # of a failed process's last words


@dataclass(frozen=True)
class Team:
    """One process among those that train one network.

    Attributes:
        rank: Number of this process, 0 for the one that writes.
        size: How many there are.
        device: What this one computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def own(self, items: list) -> list:
        """This process's share of a list, every `size`-th."""
        return items[self.rank :: self.size]

    def gather(self, item) -> list:
        """Every process's item, by rank; all processes have to call this."""
        return [item] if self.size == 1 else gather_object([item])

    def share(self, model: nn.Module) -> nn.Module:
        """Average the model's gradients over the processes."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def join_team(device: torch.device | None = None) -> Team:
    """Return this process's place: alone, or as accelerate's launcher says.

    Args:
        device: For a single process; GPU if None and there is one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team(0, 1, device or pick_device())
    state = PartialState(cpu=not torch.cuda.is_available())
    return Team(state.process_index, state.num_processes, state.device)


def count_processes() -> int:
    """One a GPU, at least one. CUDA is not initialised by asking."""
    return max(1, torch.cuda.device_count())


def launch(
    module: str, count: int, sets: Mapping[str, FrameSet], job: Mapping[str, object], log: Path
) -> None:
    """Run a module in several processes on frames and settings that are handed over on disk.

    Args:
        module: Run as `python -m MODULE FOLDER`; reads the folder with `read_job`.
        count: Processes, one a GPU; on a machine without, they share the CPU over gloo.
        sets: Frames by name.
        job: JSON-ready settings.
        log: Gets what the processes print, progress bar included, while they run.

    Raises:
        RuntimeError: A process failed; the message ends with its last words.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stem, data in sets.items():
            tensors = {"pictures": data.pictures.contiguous(), "targets": data.targets}
            save_file(tensors, folder / f"{stem}.safetensors")
        write_json(folder / "job.json", dict(job))
        # `--cpu` would silently run one process (facts); without a GPU the module chooses gloo
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
        command += ["--num_processes", str(count), "--num_machines", "1", "--main_process_port"]
        command += ["0", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--module", module, str(folder)]
        with log.open("w", encoding="utf-8") as file:
            out = {"stdout": file, "stderr": file}
            with subprocess.Popen(command, stdin=subprocess.PIPE, **out) as process:
                code = process.wait()  # the pipe stays open for as long as this process lives
    if code != 0:
        raise RuntimeError(f"{module} failed in {count} processes:\n{_last_words(log)}")


def _last_words(log: Path) -> str:
    """The end of the first traceback, or of everything."""
    lines = [x for x in log.read_text(encoding="utf-8").splitlines() if x.strip()]
    ends = [
        i for i, x in enumerate(lines) if re.match(r"(\[rank\d+\]: )?\w*(Error|Exception)\b", x)
    ]
    end = ends[0] + 1 if ends else len(lines)
    return "\n".join(lines[max(0, end - SHOWN_LINES) : end])


def read_job(folder: Path) -> tuple[dict[str, FrameSet], dict]:
    """Read what `launch` handed over, and from now on end when the launching process does.

    Returns:
        The frames by name, and the settings.
    """
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    sets = {path.stem: FrameSet(**load_file(path)) for path in folder.glob("*.safetensors")}
    return sets, read_json(folder / "job.json")


def _end_with_parent(folder: Path) -> None:
    """Wait for the end of the pipe from `launch`, also after a kill, so that no orphan trains on.

    A second training in the same folder would otherwise have a second writer. The frames that
    were handed over go as well: after a kill nobody else removes them.
    """
    os.read(sys.stdin.fileno(), 1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
