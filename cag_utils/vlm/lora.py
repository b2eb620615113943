"""LoRA adapters: what they touch, what they train, and how they come back."""

from pathlib import Path

import pandas as pd
import torch
from peft import LoraConfig, PeftModel
from transformers import ProcessorMixin

from cag_utils.backbones import LANGUAGE_MODEL_ONLY, PROJECTIONS
from cag_utils.vlm.loading import load_backbone

PROJECTOR = "multi_modal_projector"


def lora_config(
    rank: int, alpha: int, dropout: float = 0.0, targets: str = LANGUAGE_MODEL_ONLY
) -> LoraConfig:
    """Return the paper's adapter: seven projections of the language model, projector in full.

    Args:
        alpha: LoRA's scale is alpha over rank.
        targets: Regular expression of module names, `Backbone.lora_targets`.

    Source:
        CAG-VLM section 3.2.
    """
    parts = {"target_modules": targets, "modules_to_save": [PROJECTOR], "task_type": "CAUSAL_LM"}
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, **parts)


def lora_optimiser(
    model: torch.nn.Module, rate: float, projector_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW with two peak learning rates.

    One is that of LoRA's matrices, which start from nothing, the other that of the projector, which
    has learnt before.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    lora = [p for name, p in trained.items() if "lora_" in name]
    rest = [p for name, p in trained.items() if "lora_" not in name]
    groups = [{"params": lora}, {"params": rest, "lr": projector_rate}]
    return torch.optim.AdamW(groups, lr=rate, weight_decay=weight_decay)


def trainable_table(model: torch.nn.Module) -> pd.DataFrame:
    """Count what an adapted model trains, part by part.

    Returns:
        One row a part and method: part (image tower, projector, language model: q_proj ...),
        method (frozen, LoRA, full), tensors, parameters; frozen originals of trained copies are
        counted as frozen.
    """
    rows = [
        {"part": _part(name), "method": _method(name, values), "parameters": values.numel()}
        for name, values in model.named_parameters()
    ]
    table = pd.DataFrame(rows).groupby(["part", "method"], sort=True)["parameters"]
    return table.agg(tensors="count", parameters="sum").reset_index()


def raise_trained_to_float32(model: torch.nn.Module) -> None:
    """Keep trained weights in float32 whatever the base's type.

    PEFT does so for LoRA but not for the projector. At a learning rate of 1e-5 an update is
    smaller than bfloat16's step, so a bfloat16 projector would silently stay where it is.
    """
    for values in model.parameters():
        if values.requires_grad:
            values.data = values.data.float()


def save_adapter(model: PeftModel, folder: str | Path, base: str) -> Path:
    """Write the adapter, and only it; return its folder.

    Args:
        model: The tuned model. Its projector is put back to the base's type first, so the live
            model and the reloaded one compute the same.
        folder: Made if missing.
        base: The base's name for `adapter_config.json`, never this machine's path.
    """
    tower = (v for n, v in model.named_parameters() if "vision_tower" in n)
    dtype = next(v.dtype for v in tower if v.is_floating_point())  # QLoRA: 4-bit ones are integers
    for name, values in model.named_parameters():
        if PROJECTOR in name:
            values.data = values.data.to(dtype)
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    # "auto" would ask the hub for the base's vocabulary; no embedding is trained here
    model.save_pretrained(folder, save_embedding_layers=False)
    return Path(folder)


def load_tuned(
    backbone: str, size: str, adapter: str | Path, **where: str
) -> tuple[PeftModel, ProcessorMixin]:
    """Load a base and put a saved adapter on it.

    Args:
        size: tiny or real; must be the one it was tuned at.
        adapter: Folder written by `save_adapter`.
        **where: As `load_backbone`; the checkpoints must be those it was tuned on.

    Returns:
        The tuned model in evaluation mode, and the base's processor.

    Raises:
        FileNotFoundError: No adapter in the folder.
    """
    if not (Path(adapter) / "adapter_config.json").is_file():
        first = f"run notebook 04_finetune with -p backbone {backbone} first"
        raise FileNotFoundError(f"no adapter in {adapter}: {first}")
    model, processor = load_backbone(backbone, size, **where)
    return PeftModel.from_pretrained(model, str(adapter)).eval(), processor


def _part(name: str) -> str:
    if "vision_tower" in name:
        return "image tower"
    if PROJECTOR in name:
        return "projector"
    other = "embeddings" if "embed_tokens" in name or "lm_head" in name else "norms"
    words = name.split(".")
    return f"language model: {next((p for p in PROJECTIONS if p in words), other)}"


def _method(name: str, values: torch.nn.Parameter) -> str:
    if not values.requires_grad:
        return "frozen"
    return "LoRA" if "lora_" in name else "full"
