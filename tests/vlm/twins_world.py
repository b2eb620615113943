"""A small world for the language-model tests: random twins, and a corpus of flat pictures.

The right coronaries are bright and the left ones dark, so even a random tower can tell them apart.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from cag_utils.making.twins import build_twin, make_tower_config, save_twin

FINDINGS = {
    "LCA": ("LCX #11 shows 75% stenosis. Consider PCI.", "LCX #11に75%の狭窄が確認できます。"),
    "RCA": ("No significant stenosis in the RCA.", "RCAに有意狭窄は認めません。"),
}


def write_twins(folder: Path) -> Path:
    """Write random twins in the layout of `cag_utils/weights/`."""
    for kind in ("gemma3", "paligemma2"):
        model, processor = build_twin(kind, folder / kind, seed=0)
        # Untrained words as long as learnt ones make a model repeat its last token: short ones.
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(0.25)
        save_twin(model, processor, folder / kind)
    tower = timm_twin(seed=0)
    (folder / "conceptclip").mkdir()
    state = {f"visual.trunk.{k}": v.contiguous() for k, v in tower.state_dict().items()}
    save_file(state, folder / "conceptclip" / "model.safetensors")
    (folder / "conceptclip" / "config.json").write_text("{}", encoding="utf-8")
    return folder


def timm_twin(seed: int) -> torch.nn.Module:
    """Return a random timm tower of the twins' own sizes."""
    sizes = make_tower_config()
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_base_patch16_siglip_224",
        num_classes=0,
        img_size=sizes.image_size,
        patch_size=sizes.patch_size,
        embed_dim=sizes.hidden_size,
        depth=sizes.num_hidden_layers,
        num_heads=sizes.num_attention_heads,
    )


def write_pairs(outputs: Path, train: int = 12, val: int = 4, test: int = 5) -> Path:
    """Write `pairs.csv` and its pictures as notebook 03 does; returns its path."""
    rng = np.random.default_rng(0)
    folder = outputs / "03_build_corpus" / "all"
    (folder / "frames").mkdir(parents=True)
    rows = []
    for i, split in enumerate(["train"] * train + ["val"] * val + ["test"] * test):
        side = ("LCA", "RCA")[i % 2]
        level = 60 if side == "LCA" else 190
        grey = (level + rng.integers(-20, 20, (256, 256))).astype(np.uint8)
        png = folder / "frames" / f"{i:04d}.png"
        Image.fromarray(grey).save(png)
        english, japanese = FINDINGS[side]
        rows.append(
            {
                "case_id": f"case-{i:04d}",
                "patient_id": f"pt-{i:012x}",
                "exam_id": f"ex-{i:012x}",
                "video_id": f"vi-{i:012x}",
                "frame": i,
                "png": str(png.relative_to(outputs)),
                "laterality": side,
                "confidence": 0.9,
                "report_en": f"{60 + i}-year-old man with chest pain.",
                "report_ja": f"{60 + i}歳男性。胸痛。",
                "findings_en": english,
                "findings_ja": japanese,
                "split": split,
            }
        )
    pd.DataFrame(rows).to_csv(folder / "pairs.csv", index=False)
    return folder / "pairs.csv"
