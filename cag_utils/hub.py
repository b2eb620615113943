"""Files of tensors: safetensors, and for one checkpoint that has no other a `.bin`.

Published weights: whether this machine may have them, has them, and which commit they are.

Weights are read from safetensors only. A repository's own code is never run unless somebody asks
for one commit of it (`remote_code`).
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session
from safetensors.torch import load_file

from cag_utils.study import under_root


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
    path = Path(path)
    whole = path / "model.safetensors"
    parts = [whole] if whole.is_file() else sorted(path.glob("model-*.safetensors"))
    if path.is_file() and path.suffix == ".safetensors":
        parts = [path]
    if not parts:
        raise FileNotFoundError(
            f"{path} holds no model.safetensors. A .bin is a pickle, which can run code, so it is "
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
    path = Path(path)
    packed = path if path.suffix == ".bin" else path / "pytorch_model.bin"
    if packed.is_file() and not any(path.glob("model*.safetensors")):
        return torch.load(packed, map_location="cpu", weights_only=True)
    return read_safetensors(path)


HUB_TIMEOUT_S = 5
WEIGHTS_FILE, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
OWN_CODE = "JerrryNie/ConceptCLIP"  # the one repository whose code may be asked for
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """Where weights come from.

    Attributes:
        repo: Hugging Face repository, or a folder on this machine.
        revision: Branch, tag or commit; the commit it resolved to is recorded with the run.
        licence_url: Where access is granted.
        twin: Folder of the tiny twin below `cag_utils/weights/`.
        licence: Its name.
        gated: Whether the hub wants the licence accepted and a login.
        parameters: How many, about.
        download_gb: What the hub sends, about; 0 where nobody has said.
    """

    repo: str
    revision: str
    licence_url: str
    twin: str
    licence: str = "see its card"
    gated: bool = False
    parameters: float = 0.0
    download_gb: float = 0.0

    @property
    def folder(self) -> Path | None:
        """The folder it is read from, None for a repository on the hub."""
        folder = under_root(self.repo)
        return folder if folder.is_dir() else None


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

    One request with a short timeout: the hub's own client retries for half a minute.

    Args:
        checkpoint: Which one.
        endpoint: The hub's address; huggingface.co, or HF_ENDPOINT, if None.

    Raises:
        PermissionError: It is gated and no token grants access.
        ConnectionError: It is not in the cache, and offline, unreachable or not found.
    """
    repo, revision = checkpoint.repo, checkpoint.revision
    if checkpoint.folder or isinstance(
        try_to_load_from_cache(repo, "config.json", revision=revision), str
    ):
        return
    if constants.is_offline_mode():
        raise ConnectionError(_no_checkpoint(checkpoint, "offline mode is on (HF_HUB_OFFLINE)"))
    url = hf_hub_url(repo, "config.json", revision=revision, endpoint=endpoint)
    try:
        answer = get_session().head(url, headers=build_hf_headers(), timeout=HUB_TIMEOUT_S)
    except Exception as error:  # the client's error class depends on the hub's version
        why = f"the hub did not answer ({type(error).__name__}: {error})"
        raise ConnectionError(_no_checkpoint(checkpoint, why)) from error
    if answer.status_code in (401, 403):
        raise PermissionError(_no_checkpoint(checkpoint, f"it is gated ({answer.status_code})"))
    if answer.status_code >= 400:
        why = f"the hub answered {answer.status_code} for revision {revision}"
        raise ConnectionError(_no_checkpoint(checkpoint, why))


def is_here(checkpoint: Checkpoint) -> bool:
    """Say whether all weights are in a folder or the cache, so that nothing is downloaded.

    One file may be there (the configuration, asked for first) and the weights not, or the first of
    two parts only.
    """
    if checkpoint.folder:
        return True

    def cached(name: str) -> str | None:
        found = try_to_load_from_cache(checkpoint.repo, name, revision=checkpoint.revision)
        return found if isinstance(found, str) else None

    if cached(WEIGHTS_FILE):
        return True
    if not (index := cached(WEIGHTS_INDEX)):
        return False
    parts = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
    return all(cached(name) for name in set(parts))


def fetch_weights(pretrained_model_name_or_path: str, revision: str | None = None) -> Path:
    """Return a folder or file that `conceptclip.read_safetensors` reads; downloads weights only.

    A tower needs tensors and nothing else, so none of the code in its repository is run.

    Args:
        pretrained_model_name_or_path: A folder, or a repository's name.
        revision: Of the repository.

    Raises:
        FileNotFoundError: The repository holds no `model.safetensors`.
    """
    if Path(pretrained_model_name_or_path).is_dir():
        return Path(pretrained_model_name_or_path)
    repo = pretrained_model_name_or_path
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
    for name in ("config.json", WEIGHTS_FILE):
        found = try_to_load_from_cache(source, name, revision=revision)
        if isinstance(found, str):  # .../snapshots/<commit>/config.json
            return Path(found).parent.name
    raise FileNotFoundError(f"{source} at {revision} is not in the cache: load it first")


def remote_code(checkpoint: Checkpoint, commit: str = "") -> dict[str, str | bool]:
    """Return the arguments that let `from_pretrained` run ConceptCLIP's own code; none by default.

    The study does not need it: its own network (`two_towers.ConceptClip`) reads the same tensors.
    It is here to compare the two. What is run was read by whoever names the commit.

    Args:
        checkpoint: Must be ConceptCLIP's.
        commit: 40 hexadecimal digits; empty runs nothing.

    Raises:
        ValueError: Another repository, or a branch or tag, which may change under one's feet.
    """
    if not commit:
        return {}
    if checkpoint.repo != OWN_CODE:
        raise ValueError(f"code of {checkpoint.repo} is never run, only that of {OWN_CODE}")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise ValueError(
            f"remote code is run from one commit, 40 hexadecimal digits, got {commit!r}: "
            f"read it at {checkpoint.licence_url}/commits/main and pass the commit you read"
        )
    return {"trust_remote_code": True, "revision": commit, "code_revision": commit}


def _no_checkpoint(checkpoint: Checkpoint, why: str) -> str:
    return (
        f"{checkpoint.repo} cannot be loaded: {why}.\n"
        f"1. accept its licence at {checkpoint.licence_url}\n"
        "2. log in with  hf auth login\n"
        f"Or use the tiny twin {checkpoint.twin!r}: pass  -p size tiny"
    )
