"""Published weights: whether this machine may have them, has them, and which commit they are.

Weights are read from safetensors only, with MedCLIP's `.bin` as the one exception. No repository's
own code is ever run: the study has networks of its own for the same tensors (`two_towers`).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
)

from cag_utils.study import under_root

if TYPE_CHECKING:  # registries hold checkpoints, and tables read registries: no torch for those
    import torch

HUB_TIMEOUT_S = 5
WEIGHTS_FILE, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """Where weights come from.

    Attributes:
        repo: Hugging Face repository, or a folder on this machine.
        revision: Branch, tag or commit; the commit it resolved to is recorded with the run.
        licence_url: Where a person finds it, and access is granted.
        twin: Folder of the tiny twin below `cag_utils/weights/`.
        licence: Its name.
        gated: Whether the hub wants the licence accepted and a login.
        parameters: How many, about.
        download_gb: What the hub sends, about; 0 where nobody has said.
        command: What makes it available here.
    """

    repo: str
    revision: str
    licence_url: str
    twin: str
    licence: str = "see its card"
    gated: bool = False
    parameters: float = 0.0
    download_gb: float = 0.0
    command: str = "hf auth login"

    @property
    def folder(self) -> Path | None:
        """The folder it is read from, None for a repository on the hub."""
        folder = under_root(self.repo)
        return folder if folder.is_dir() else None

    @property
    def snapshot(self) -> Path | None:
        """The folder it is read from, on this machine or in the hub's cache; None if in neither."""
        return self.folder or _cached(self.repo, self.revision)

    @property
    def way_out(self) -> str:
        """What to do where it cannot be had, one step a line."""
        return (
            f"1. see {self.licence_url}: a gated one wants its licence accepted there\n"
            f"2. {self.command}\n"
            f"Or use the tiny twin {self.twin!r}: pass  -p size tiny, or `size: tiny` in a profile"
        )


# The one repository that two rooms read: as a backbone's image tower and as an embedder.
CONCEPTCLIP = Checkpoint(
    "JerrryNie/ConceptCLIP",
    "main",
    "https://huggingface.co/JerrryNie/ConceptCLIP",
    "conceptclip",
    licence="MIT",
    gated=True,
    parameters=0.54e9,
    download_gb=2.2,  # float32: 0.43e9 in the image tower, 0.11e9 in PubMedBERT
    command="hf auth login && hf download JerrryNie/ConceptCLIP",
)


def override(checkpoint: Checkpoint, source: str) -> Checkpoint:
    """Point a registry entry at other weights.

    Args:
        checkpoint: The entry.
        source: A folder (a relative one starts at the repository root), or `owner/name` on the
            hub, with `@revision` if not main; empty changes nothing.

    Raises:
        FileNotFoundError: It is neither a folder nor the name of a repository.
    """
    if not source:
        return checkpoint
    if (folder := under_root(source)).is_dir():
        return replace(
            checkpoint, repo=str(folder), revision="", licence="its own", gated=False, download_gb=0
        )
    repo, _, revision = source.partition("@")
    if not HUB_ID.fullmatch(repo):
        raise FileNotFoundError(f"{source!r} is neither a folder nor owner/name[@revision]")
    if repo == checkpoint.repo:
        return replace(checkpoint, revision=revision or checkpoint.revision)
    url = f"https://huggingface.co/{repo}"
    return Checkpoint(repo, revision or "main", url, checkpoint.twin)


def check_access(checkpoint: Checkpoint, endpoint: str | None = None) -> None:
    """Fail within seconds if a published checkpoint cannot be loaded here.

    One request about one file of the revision: `auth_check` waits for ever where a hub is silent,
    and says nothing of the revision.

    Args:
        checkpoint: Which one.
        endpoint: The hub's address; huggingface.co, or HF_ENDPOINT, if None.

    Raises:
        PermissionError: It is gated and no token grants access.
        ConnectionError: It is not in the cache, and offline, unreachable or not found.
    """
    if checkpoint.snapshot:
        return
    head = f"{checkpoint.repo} cannot be loaded: "
    if constants.is_offline_mode():
        raise ConnectionError(f"{head}offline mode is on (HF_HUB_OFFLINE).\n{checkpoint.way_out}")
    name, revision = "config.json", checkpoint.revision
    url = hf_hub_url(checkpoint.repo, name, revision=revision, endpoint=endpoint)
    try:
        get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
    except EntryNotFoundError:
        return  # whoever is told that this file is not there may read the others
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            why = f"it is gated ({status})"
            raise PermissionError(f"{head}{why}.\n{checkpoint.way_out}") from error
        why = f"the hub answered {status} for revision {revision}"
        raise ConnectionError(f"{head}{why}.\n{checkpoint.way_out}") from error
    except Exception as error:  # the client's error class depends on the hub's version
        why = f"the hub did not answer ({type(error).__name__}: {error})"
        raise ConnectionError(f"{head}{why}.\n{checkpoint.way_out}") from error


def is_here(checkpoint: Checkpoint) -> bool:
    """Say whether all weights are in a folder or the cache, so that nothing is downloaded.

    One file may be there (the configuration, asked for first) and the weights not, or the first of
    two parts only.
    """
    if checkpoint.folder:
        return True
    snapshot = checkpoint.snapshot
    if snapshot is None or (snapshot / WEIGHTS_FILE).is_file():
        return snapshot is not None
    if not (index := snapshot / WEIGHTS_INDEX).is_file():
        return False
    parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return all((snapshot / name).is_file() for name in set(parts))


def fetch_weights(pretrained_model_name_or_path: str, revision: str | None = None) -> Path:
    """Return a folder or file that `read_safetensors` reads; downloads weights only.

    A tower needs tensors and nothing else, so none of the code in its repository is run.

    Args:
        pretrained_model_name_or_path: A folder, or a repository's name.
        revision: Of the repository.

    Raises:
        FileNotFoundError: The repository holds no `model.safetensors`.
    """
    repo = pretrained_model_name_or_path
    if Path(repo).is_dir():
        return Path(repo)
    try:
        return Path(hf_hub_download(repo, WEIGHTS_FILE, revision=revision))
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo} at {revision} has no {WEIGHTS_FILE} (or it is not in the cache, offline), and "
            "a .bin is a pickle: convert it where you trust it, and pass the folder"
        ) from error


def resolved_commit(source: str, revision: str = "main") -> str:
    """Return what exactly was loaded, for the run's record.

    Args:
        source: A repository on the hub, loaded once, or a folder.
        revision: Of the repository.

    Returns:
        The commit, 40 hexadecimal digits; for a folder `sha256:` and a hash of its configuration
        and weights.

    Raises:
        FileNotFoundError: The repository is not in the cache.
    """
    if (folder := under_root(source)).is_dir():
        digest = hashlib.sha256()
        for path in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")]):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return f"sha256:{digest.hexdigest()}"
    if snapshot := _cached(source, revision):  # .../snapshots/<commit>
        return snapshot.name
    raise FileNotFoundError(f"{source} at {revision} is not in the cache: load it first")


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors; the format holds no code, so none can run.

    Args:
        path: A `.safetensors` file, or a folder that holds `model.safetensors` or its parts
            (`model-00001-of-00002.safetensors`).

    Returns:
        Name to tensor, on the CPU.

    Raises:
        FileNotFoundError: There is no such file; a `.bin` is a pickle, and left alone.
    """
    from safetensors.torch import load_file

    path = Path(path)
    whole = path / WEIGHTS_FILE
    parts = [whole] if whole.is_file() else sorted(path.glob("model-*.safetensors"))
    if path.is_file() and path.suffix == ".safetensors":
        parts = [path]
    if not parts:
        raise FileNotFoundError(
            f"{path} holds no {WEIGHTS_FILE}. A .bin is a pickle, which can run code, so it is "
            "not read here; where you trust it, convert it once:  "
            "state = torch.load('pytorch_model.bin', weights_only=True); "
            "safetensors.torch.save_file(state, 'model.safetensors')"
        )
    return {name: tensor for part in parts for name, tensor in load_file(part).items()}


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Read MedCLIP's tensors, which its authors publish as a `.bin` only.

    Safetensors come first. `weights_only` makes torch rebuild tensors and plain containers and
    refuse everything else, so that no code in the file is run.

    Args:
        path: A file, or a folder with `pytorch_model.bin` or what `read_safetensors` reads.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        FileNotFoundError: Neither format is there.
    """
    import torch

    path = Path(path)
    packed = path if path.suffix == ".bin" else path / "pytorch_model.bin"
    if packed.is_file() and not any(path.glob("model*.safetensors")):
        return torch.load(packed, map_location="cpu", weights_only=True)
    return read_safetensors(path)


def _cached(repo: str, revision: str) -> Path | None:
    """Return a repository's folder in the hub's cache; files may be missing in it."""
    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except IncompleteSnapshotError as error:
        return Path(error.snapshot_path)
    except LocalEntryNotFoundError:
        return None
