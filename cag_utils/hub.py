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

from huggingface_hub import constants, errors, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.file_download import get_hf_file_metadata

from cag_utils.study import under_root

if TYPE_CHECKING:  # registries hold checkpoints, and tables read registries: no torch for those
    import torch

HUB_TIMEOUT_S = 5
WEIGHTS_FILE = "model.safetensors"
NO_PICKLE = (
    "A .bin is a pickle, which can run code, so it is not read here; where you trust it, convert "
    "it once and pass the folder:  state = torch.load('pytorch_model.bin', weights_only=True); "
    "safetensors.torch.save_file(state, 'model.safetensors')"
)


@dataclass(frozen=True)
class Checkpoint:
    """Where weights come from."""

    repo: str  # Hugging Face repository, or a folder on this machine
    revision: str  # branch, tag or commit; the commit it resolved to is recorded with the run
    licence_url: str  # where a person finds it, and access is granted
    twin: str  # folder of the tiny twin below `cag_utils/weights/`
    licence: str = "see its card"  # its name
    gated: bool = False  # whether the hub wants the licence accepted and a login
    parameters: float = 0.0  # how many, about
    download_gb: float = 0.0  # what the hub sends, about; 0 where nobody has said
    command: str = "hf auth login"  # what makes it available here

    @property
    def folder(self) -> Path | None:
        """The folder it is read from, None for a repository on the hub."""
        return folder if (folder := under_root(self.repo)).is_dir() else None

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
    "JerrryNie/ConceptCLIP", "main", "https://huggingface.co/JerrryNie/ConceptCLIP", "conceptclip",
    licence="MIT", gated=True, command="hf auth login && hf download JerrryNie/ConceptCLIP",
    parameters=0.54e9, download_gb=2.2,  # float32: 0.43e9 in the image tower, 0.11e9 in PubMedBERT
)  # fmt: skip


def override(checkpoint: Checkpoint, source: str) -> Checkpoint:
    """Point a registry entry at other weights.

    Args:
        source: A folder (from the repository's root) or `owner/name[@revision]`; empty: the entry.

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
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
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
        endpoint: The hub's address; huggingface.co, or HF_ENDPOINT, if None.

    Raises:
        PermissionError: It is gated and no token grants access.
        ConnectionError: It is not in the cache, and offline, unreachable or not found.
    """
    if checkpoint.snapshot:
        return
    repo, revision = checkpoint.repo, checkpoint.revision
    refusal, why, cause = ConnectionError, "offline mode is on (HF_HUB_OFFLINE)", None
    if not constants.is_offline_mode():
        url = hf_hub_url(repo, "config.json", revision=revision, endpoint=endpoint)
        try:
            get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
            return
        except errors.EntryNotFoundError:
            return  # whoever is told that this file is not there may read the others
        except errors.HfHubHTTPError as error:
            status, cause = error.response.status_code, error
            why = f"the hub answered {status} for revision {revision}"
            if status in (401, 403):
                refusal, why = PermissionError, f"it is gated ({status})"
        except Exception as error:  # the client's error class depends on the hub's version
            why, cause = f"the hub did not answer ({type(error).__name__}: {error})", error
    raise refusal(f"{repo} cannot be loaded: {why}.\n{checkpoint.way_out}") from cause


def is_here(checkpoint: Checkpoint) -> bool:
    """Say whether all weights, not some parts only, are in a folder or the hub's cache."""
    snapshot = checkpoint.snapshot
    if snapshot is None:
        return False
    if checkpoint.folder or (snapshot / WEIGHTS_FILE).is_file():
        return True
    if not (index := snapshot / f"{WEIGHTS_FILE}.index.json").is_file():
        return False
    parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return all((snapshot / name).is_file() for name in set(parts))


def fetch_weights(pretrained_model_name_or_path: str, revision: str | None = None) -> Path:
    """Return what `read_safetensors` reads: the folder itself, or a repository's downloaded file.

    Raises:
        FileNotFoundError: The repository holds no `model.safetensors`.
    """
    repo = pretrained_model_name_or_path
    if Path(repo).is_dir():
        return Path(repo)
    try:
        return Path(hf_hub_download(repo, WEIGHTS_FILE, revision=revision))
    except errors.EntryNotFoundError as error:
        why = f"{repo} at {revision} has no {WEIGHTS_FILE} (or it is not in the cache, offline)"
        raise FileNotFoundError(f"{why}. {NO_PICKLE}") from error


def resolved_commit(source: str, revision: str = "main") -> str:
    """Return what exactly was loaded, for the run's record: a repository's commit (40 digits).

    Of a folder it is `sha256:` and a hash of its configuration and weights.

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
    """Read a checkpoint's tensors, by name, on the CPU; the format holds no code to run.

    Args:
        path: A `.safetensors` file, or a folder of `model[-00001-of-00002].safetensors`.

    Raises:
        FileNotFoundError: There is no such file; a `.bin` is a pickle, and left alone.
    """
    from safetensors.torch import load_file

    path = Path(path)
    whole = path if path.suffix == ".safetensors" else path / WEIGHTS_FILE
    parts = [whole] if whole.is_file() else sorted(path.glob("model-*.safetensors"))
    if not parts:
        raise FileNotFoundError(f"{path} holds no {WEIGHTS_FILE}. {NO_PICKLE}")
    return {name: tensor for part in parts for name, tensor in load_file(part).items()}


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Read MedCLIP's tensors, which its authors publish as a `.bin` only; safetensors come first.

    `weights_only` makes torch refuse all but tensors and plain containers: no code is run.

    Raises:
        FileNotFoundError: `path` is neither such a file or its folder, nor safetensors.
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
    except errors.IncompleteSnapshotError as error:
        return Path(error.snapshot_path)
    except errors.LocalEntryNotFoundError:
        return None
