"""Checks before anything heavy: access, disk, memory and number format, in seconds."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import torch
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from cag_utils.backbones import LANGUAGE_MODEL_ONLY, get_backbone
from cag_utils.hub import Checkpoint, is_here, resolved_commit
from cag_utils.vlm.loading import find_sources, locate, model_layout, quantisation
from cag_utils.vlm.lora import PROJECTOR

GB = 1e9
MARGIN = 1.2  # a choice: fragments, kernels' scratch space
CONTEXT_GB = 0.6  # a choice: what CUDA and its libraries take before the first tensor
# QLoRA (Dettmers et al. 2023): 4 bits, and 0.127 bits of doubly quantised constants
PACKED_BYTES = (4 + 0.127) / 8
TEXT_TOKENS = 768  # prompt and answer of one case, about
TRAINED_BYTES = 16  # float32: the weight, its gradient, and AdamW's two moments
COLUMNS = ["check", "needed", "present", "ok"]


@dataclass(frozen=True)
class Stack:
    """The layers of one transformer: how many, width of the hidden state and of the inner part."""

    layers: int
    width: int
    inner: int

    def kept(self, tokens: int, checkpointing: bool) -> int:
        """Return how many numbers one case's forward pass keeps for the backward pass.

        A layer keeps about 8 vectors of its width and 4 of its inner width a token. With gradient
        checkpointing each layer keeps its input alone, and one layer at a time is computed again.
        """
        layer = 8 * self.width + 4 * self.inner
        per_token = self.layers * (self.width if checkpointing else layer)
        return tokens * (per_token + (layer if checkpointing else 0))


@dataclass(frozen=True)
class Footprint:
    """The sizes that memory depends on."""

    parameters: int  # all of them, tied ones once
    packable: int  # those in the language model's linear layers, which 4-bit loading packs
    adapter_sides: int  # rows plus columns of what LoRA adapts; times the rank: LoRA's parameters
    projector: int  # its parameters, trained in full
    language: Stack
    tower: Stack
    patches: int  # of one picture, as `image_tokens`
    image_tokens: int


def footprint(
    config: PreTrainedConfig, image_tokens: int = 0, targets: str = LANGUAGE_MODEL_ONLY
) -> Footprint:
    """Count what memory depends on, from a configuration alone; no weight is made.

    Args:
        config: Of Gemma3 or PaliGemma.
        image_tokens: Of a tower that will be swapped in; 0 takes the configuration's.
        targets: Regular expression of the modules that get LoRA.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    adapted = [m.weight.shape for n, m in model.named_modules() if re.fullmatch(targets, n)]
    text, vision = config.text_config, config.vision_config
    return Footprint(
        parameters=sum(p.numel() for p in model.parameters()),
        packable=sum(rows * columns for rows, columns in adapted),
        adapter_sides=sum(rows + columns for rows, columns in adapted),
        projector=sum(p.numel() for n, p in model.named_parameters() if PROJECTOR in n),
        language=Stack(text.num_hidden_layers, text.hidden_size, text.intermediate_size),
        tower=Stack(vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size),
        patches=(vision.image_size // vision.patch_size) ** 2,
        image_tokens=image_tokens or model_layout(config)[1],
    )


def weights_gb(size: Footprint, bytes_each: int, quantise: str = "none") -> float:
    """Return what the weights take, GB: all in one type, or the language model packed to 4 bits."""
    packed = size.packable if quantise == "4bit" else 0
    return (packed * PACKED_BYTES + (size.parameters - packed) * bytes_each) / GB


def training_gb(
    size: Footprint,
    bytes_each: int,
    rank: int,
    batch_size: int,
    text_tokens: int = TEXT_TOKENS,
    quantise: str = "none",
    checkpointing: bool = True,
) -> float:
    """Return what LoRA training of one process takes, GB.

    (weights + 16 bytes a trained parameter + batch size x what a case keeps) x margin. No term for
    logits: TRL scores the answer's tokens alone, in pieces.

    Args:
        bytes_each: Of one number: 2 in bfloat16, 4 in float32.
        batch_size: Cases a process and step.
        text_tokens: Prompt and answer of one case, its picture not counted.
        checkpointing: See `Stack.kept`.
    """
    trained = (rank * size.adapter_sides + size.projector) * TRAINED_BYTES / GB
    tokens = size.image_tokens + text_tokens
    case = size.language.kept(tokens, checkpointing) + size.tower.kept(size.patches, checkpointing)
    acts = batch_size * case * bytes_each / GB
    return (weights_gb(size, bytes_each, quantise) + trained + acts) * MARGIN


FIXES = {
    "free disk": "free some, or set HF_HOME to a folder on a larger disk",
    "GPU memory": "a smaller batch_size, quantise 4bit, a larger GPU, or  -p size tiny",
    "memory": "a smaller batch_size, a machine with more memory or a GPU, or  -p size tiny",
    "bfloat16": "a GPU of compute capability 8.0 or more (A100, L4, RTX 30), or  -p size tiny",
}


@dataclass(frozen=True)
class Machine:
    """What there is."""

    device: str  # cuda or cpu
    name: str  # of the GPU, or CPU
    memory_gb: float  # free on the smallest GPU, or in the machine, GB of 1e9 bytes
    disk_gb: float  # free where the hub's cache is
    bfloat16: bool  # whether the GPU computes in it; True on a CPU, which is not asked to


def read_machine() -> Machine:
    """Measure this machine: its GPU if there is one, else its CPU."""
    cache = Path(constants.HF_HUB_CACHE)
    there = next(p for p in (cache, *cache.parents) if p.exists())
    disk = shutil.disk_usage(there).free / GB
    if not torch.cuda.is_available():
        return Machine("cpu", "CPU", psutil.virtual_memory().available / GB, disk, True)
    gpus = range(torch.cuda.device_count())
    free = min(torch.cuda.mem_get_info(i)[0] for i in gpus) / GB
    fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return Machine("cuda", torch.cuda.get_device_name(), free, disk, fast)


def check_machine(
    machine: Machine, download_gb: float, memory_gb: float, dtype: str
) -> pd.DataFrame:
    """Compare what is needed with what there is; the rows are those of `preflight`.

    Args:
        download_gb: Still to be fetched.
        memory_gb: Needed on each GPU, or in the machine, without what CUDA itself takes.
        dtype: Wanted on a GPU.

    Raises:
        RuntimeError: Names every check that failed, and what helps.
    """
    gpu, free, disk = machine.device != "cpu", machine.memory_gb, machine.disk_gb
    needed = memory_gb + (CONTEXT_GB if gpu else 0)
    wanted = dtype if gpu else "float32 on a CPU"
    present = ("yes" if machine.bfloat16 else "no") if gpu else "not needed"
    kind, there = "GPU memory" if gpu else "memory", f"{free:.1f} GB ({machine.name})"
    rows = [
        ("free disk", f"{download_gb:.1f} GB", f"{disk:.1f} GB", disk >= download_gb),
        (kind, f"{needed:.1f} GB", there, free >= needed),
        ("bfloat16", wanted, present, machine.bfloat16 or not gpu or dtype != "bfloat16"),
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    lines = [
        f"- {row.check}: needs {row.needed}, there is {row.present}. Try: {FIXES[row.check]}"
        for row in table[~table["ok"]].itertuples()
    ]
    if lines:
        raise RuntimeError("this machine cannot run it:\n" + "\n".join(lines))
    return table


def preflight(
    name: str,
    size: str = "tiny",
    *,
    batch_size: int = 1,
    rank: int = 0,
    quantise: str = "none",
    machine: Machine | None = None,
    **where: str,
) -> pd.DataFrame:
    """Check in seconds what would otherwise fail after an hour; downloads a configuration at most.

    Args:
        size: tiny or real. A twin passes the same checks.
        batch_size: Cases a process at a time.
        rank: Of LoRA; 0 takes the registry's.
        machine: What there is; measured if None.
        **where: checkpoint and tower_checkpoint, as `find_sources`.

    Returns:
        One row a check: check, needed, present, ok (all True).

    Raises:
        ValueError: As `find_sources` and `quantisation`.
        PermissionError, ConnectionError, FileNotFoundError: As `locate`.
        RuntimeError: Disk, memory or number format do not do; names all that failed, with help.
    """
    machine = machine or read_machine()
    quantisation(quantise, machine.device)
    model, tower = find_sources(name, size, **where)
    sources = [model, *([tower] if tower else [])]
    rows = [_access_row(source, size) for source in sources]
    entry = get_backbone(name)
    config = AutoConfig.from_pretrained(**locate(model, size))
    swapped = entry.image_tokens if tower and size == "real" else 0
    needs = footprint(config, swapped, entry.lora_targets)
    each = 2 if machine.device != "cpu" and entry.dtype == "bfloat16" else 4
    how = {"quantise": quantise, "checkpointing": size == "real"}  # as training sets it
    memory = training_gb(needs, each, rank or entry.lora_rank, batch_size, **how)
    missing = [s for s in sources if size == "real" and not is_here(s)]
    # the registry's size, or for any other repository its parameters in bfloat16
    download = sum(source.download_gb or 2 * needs.parameters / GB for source in missing)
    checked = check_machine(machine, download, memory, entry.dtype)
    return pd.concat([pd.DataFrame(rows, columns=COLUMNS), checked], ignore_index=True)


def _access_row(source: Checkpoint, size: str) -> tuple[str, str, str, bool]:
    """Ask for access, which raises if there is none."""
    locate(source, size)
    if size == "tiny":
        return f"access: {source.twin} (twin)", "a folder", "shipped", True
    if source.folder:
        return f"access: {source.folder.name}", "a folder", "there", True
    needed = "licence and login" if source.gated else "the hub or its cache"
    present = "in the cache" if is_here(source) else "granted"
    return f"access: {source.repo}", needed, present, True


def sources_table(name: str, size: str = "tiny", **where: str) -> pd.DataFrame:
    """Say what exactly `load_backbone` has loaded, for the run's record; takes what it takes.

    Returns:
        part (model, image tower), source (a repository, or a folder's name without its path),
        revision, commit (or `sha256:` of a folder), licence.

    Raises:
        FileNotFoundError: It was not loaded yet.
    """
    model, tower = find_sources(name, size, **where)
    rows = []
    for part, source in (("model", model), ("image tower", tower)):
        if source is None:
            continue
        found = locate(source, size)
        where = found["pretrained_model_name_or_path"]
        name = Path(where).name if size == "tiny" or source.folder else where
        licence = "the study's own" if size == "tiny" else source.licence
        commit = resolved_commit(where, source.revision)
        rows.append((part, name, found.get("revision", ""), commit, licence))
    return pd.DataFrame(rows, columns=["part", "source", "revision", "commit", "licence"])
