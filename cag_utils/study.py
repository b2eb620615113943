"""The spine of a run: where things are, which profile, which seed, and what was recorded."""

import hashlib
import json
import os
import platform
import random
import re
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from filelock import FileLock, Timeout

from cag_utils.params import Params
from cag_utils.profiles import Profile, load_profile

PACKAGE = Path(__file__).parent  # holds weights, profiles, templates, the paper's numbers

RECORDED = ("numpy", "pandas", "pydicom", "scikit-learn", "timm", "torch", "transformers", "trl")
KEY_BYTES = 32
BY_WORKFLOW = "CAG_WORKFLOW"  # set in the environment of a notebook that the workflow runs

_CLAIMED: dict[str, FileLock] = {}  # runs of this process

# What the study calls each notebook's run; `all` where it makes one alone.
RUN_NAMES = {
    "00_frame_sampling": "{cohort}",
    "01_train_cnn": "six_class",
    "02_confusion_matrices": "{cnn_run}",
    "04_finetune": "{backbone}_{language}",
    "05_generate_reports": "{language}",
    "06_vlscore": "{language}",
    "07_physician_scores": "{language}",
    "A6_ablations": "{backbone}_{language}",
    "A11_review_reports": "{language}",
    "A12_exam_reports": "{backbone}_{language}",
    "A8_power": "{language}",
}
# Parameters that change no result: where, how fast, and what else is done with it.
NEUTRAL = {
    "profile", "out_root", "n_workers", "workers", "scheduler", "ship", "send_own_images", "sheets",
}  # fmt: skip


def root() -> Path:
    """Return `$CAG_ROOT` if set, else the folder that holds `cag_utils/`, wherever a kernel is."""
    return Path(os.environ.get("CAG_ROOT") or PACKAGE.parent).resolve()


def under_root(path: str | Path) -> Path:
    """Anchor a relative path at the repository root; leave absolute paths alone."""
    return root() / Path(path).expanduser()


def data_dir(profile: Profile) -> Path:
    """Return the folder of a profile's cohorts; a phantom's carries a hash of its settings.

    Raises:
        FileNotFoundError: The profile reads own data and its folder is not there.
    """
    if profile.data.source == "phantom":
        digest = hashlib.sha256(profile.data.model_dump_json().encode()).hexdigest()
        return root() / "data" / f"phantom_{profile.name}_{digest[:8]}"
    folder = under_root(profile.data.folder)
    if not folder.is_dir():
        advice = "put your archive there (README, 'Your own data')"
        if profile.data.source != "folder":
            advice = f"python -m cag_utils.cines fetch {profile.data.source}  says whence"
        raise FileNotFoundError(
            f"{folder} does not exist: {advice}, or name another folder under data.folder in the "
            f"profile {profile.given!r}"
        )
    return folder


def pseudonym_key(profile: Profile, own_data: bool = False) -> bytes:
    """Return the secret key of the study's pseudonyms.

    A phantom's key is fixed, and a public set's. Own data get a random one on first use, in
    `data/private/`: whoever knows it can try it on a list of real ids.

    Args:
        own_data: Whether the files are somebody's own, whatever the profile says.

    Raises:
        ValueError: The key file holds no whole key.
    """
    if profile.data.source != "folder" and not own_data:
        return f"{profile.data.source}:{profile.name}".encode()
    path = root() / "data" / "private" / "pseudonym.key"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            try:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
            except OSError:  # a full disk: half a key would be refused for ever
                path.unlink()
                raise
    except FileExistsError:
        deadline = time.monotonic() + 5  # another notebook may be writing it at this moment
        while path.stat().st_size < KEY_BYTES and time.monotonic() < deadline:
            time.sleep(0.01)
    if len(key := path.read_bytes()) < KEY_BYTES:
        raise ValueError(
            f"{path} holds {len(key)} of {KEY_BYTES} bytes: restore it, or delete it and run every "
            "notebook again, because all ids will be new"
        )
    return key


@dataclass(frozen=True)
class Run:
    """One execution of one notebook."""

    notebook: str  # its stem, e.g. `04_finetune`
    dir: Path  # `outputs/<profile>/<notebook>/<slug>/`
    profile: Profile
    seed: int
    started: float = field(default_factory=time.monotonic)

    @property
    def outputs(self) -> Path:
        """`outputs/<profile>/`: the only place a notebook may read from."""
        return self.dir.parents[1]

    def need(self, path: str) -> Path:
        """Return an input, below `outputs/<profile>/`, written by a lower-numbered notebook.

        Raises:
            FileNotFoundError: It is not there; the message names the command that makes it.
            ValueError: The path belongs to this notebook or a later one.
        """
        maker, run_name, *_ = Path(path).parts
        if maker[:2] >= self.notebook[:2] and self.notebook[0].isdigit():
            raise ValueError(f"{self.notebook} may not read {path}: only lower-numbered outputs")
        found = self.outputs / path
        if not found.exists():
            given = {"profile": shlex.quote(self.profile.given)}
            if self.outputs.parent != under_root("outputs"):
                given["out_root"] = shlex.quote(str(self.outputs.parent))
            before = f"OUT_ROOT={given['out_root']} " if "out_root" in given else ""
            pattern = re.sub(r"{(\w+)}", r"(?P<\1>\\w+)", RUN_NAMES.get(maker, "all"))
            told = re.fullmatch(pattern, run_name)
            given |= told.groupdict() if told else {}
            options = " ".join(f"-p {name} {value}" for name, value in given.items())
            raise FileNotFoundError(
                f"{found} is missing. Make it with:  "
                f"{before}make study PROFILE={given['profile']}\n"
                f"or alone with:  papermill notebooks/{maker}.ipynb out.ipynb {options}"
            )
        return found

    def save_metrics(self, metrics: dict[str, float | int | str | None]) -> dict:
        """Write `metrics.json` and `provenance.json`; return the metrics, for display.

        Args:
            metrics: Flat figures. Tests and tables read these, never printed text. Two runs on one
                machine give the same bytes; what may differ (seconds, memory, versions) goes to
                `provenance.json`.

        Raises:
            ValueError: A value is not a plain number, string or None.
        """
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in metrics.items()}
        if bad := {k: v for k, v in plain.items() if not isinstance(v, int | float | str | None)}:
            raise ValueError(f"metrics must be flat numbers, strings or None, got {bad}")
        write_json(self.dir / "metrics.json", plain)
        facts = {"profile": self.profile.name, "seed": self.seed}
        facts["seconds"] = round(time.monotonic() - self.started, 1)
        write_json(self.dir / "provenance.json", provenance() | facts)
        return plain


def open_run(params: Params, notebook: str, shared: bool = False) -> Run:
    """Start a notebook: check the profile, make the run's folder, seed, set the theme, say so.

    The study's own run carries a plain name (`RUN_NAMES`). A run by hand adds the parameters that
    differ from the notebook's to its name, and never writes over a run that the workflow has made.

    Args:
        params: The notebook's checked parameters; needs `profile`, `out_root` and `seed`.
        shared: Whether other processes may have this run open, too: a desk, one page a reader.

    Raises:
        RuntimeError: Another process writes there, and it is not `shared`.
    """
    import seaborn as sns

    profile, pattern = load_profile(params.profile), RUN_NAMES.get(notebook, "all")
    name = pattern.format_map(vars(params))
    folder = under_root(params.out_root) / profile.name / notebook
    if BY_WORKFLOW not in os.environ:
        told = re.findall(r"{(\w+)}", pattern)
        name = "_".join([name, *params.changes({*told, *NEUTRAL})])
        if (folder / name / f"{notebook}.ipynb").exists():  # executed by the workflow: its log
            name += "_by_hand"
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    if not shared:
        _claim(folder)
    seed_everything(params.seed)
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind")
    facts = provenance()
    print(f"{notebook} [{name}] · profile {profile.name} · seed {params.seed}")  # noqa: T201
    print(f"commit {facts['commit']} · {facts['device']} · python {facts['python']}")  # noqa: T201
    return Run(notebook, folder, profile, params.seed)


def _claim(folder: Path) -> None:
    """Keep a run's folder to this process until it ends.

    Raises:
        RuntimeError: Another process writes there.
    """
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    if name in _CLAIMED:
        return
    lock = FileLock(Path(tempfile.gettempdir()) / f"cag_run_{name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RuntimeError(
            f"another run is writing to {folder}: wait for it, or give this one another out_root"
        ) from None
    _CLAIMED[name] = lock


def seed_everything(seed: int) -> None:
    """Seed the global generators, torch's if it is loaded, for libraries that take no other."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that use the legacy generator
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


def provenance() -> dict[str, str | float]:
    """Return what a run was made with: commit, versions, device, peak memory in GB."""
    facts = {"commit": _commit(), "python": platform.python_version(), "device": _device()}
    facts |= {name: version(name) for name in RECORDED}
    facts["peak_gb"] = round(_peak_bytes() / 1e9, 2)
    return facts


def write_json(path: Path, content: dict) -> None:
    """Write JSON with sorted keys, UTF-8, one trailing newline; on an error the old file stays."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    with replacing(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to, which takes the place of `path` when all is written.

    On a full disk the old file stays, and no half of a new one; the error names the file.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    """Read a JSON file as UTF-8."""
    return json.loads(path.read_text(encoding="utf-8"))


def _commit() -> str:
    command = ["git", "-C", str(root()), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return "unknown (no git)"
    return done.stdout.strip() or "unknown (not a git checkout)"


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    usable = getattr(os, "sched_getaffinity", None)  # Linux only
    return f"CPU, {len(usable(0)) if usable else os.cpu_count()} cores"


def _peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows has no resource module; psutil knows the peak there
        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
