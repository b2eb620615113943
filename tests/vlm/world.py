"""A small world for the language-model tests: random twins, a corpus of flat pictures, small jobs.

The right coronaries are bright and the left ones dark, so even a random tower can tell them apart.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import SiglipVisionConfig

from cag_utils.corpus.examples import open_picture, read_examples
from cag_utils.making.twins import build_twin, save_twin
from cag_utils.profiles import load_profile
from cag_utils.vlm.data import conversation, plain_collator
from cag_utils.vlm.loading import load_backbone
from cag_utils.vlm.sft import Job, make_job
from tests.conftest import ROOT

NAMES = ("gemma3", "paligemma2", "conceptclip_gemma3")
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
    (folder / "conceptclip").mkdir()
    tower = timm_twin(model.config.vision_config).state_dict()
    state = {f"visual.trunk.{name}": values.contiguous() for name, values in tower.items()}
    save_file(state, folder / "conceptclip" / "model.safetensors")
    (folder / "conceptclip" / "config.json").write_text("{}", encoding="utf-8")
    return folder


def timm_twin(sizes: SiglipVisionConfig) -> torch.nn.Module:
    """Return a random timm tower of the twins' own sizes."""
    torch.manual_seed(0)
    shape = {"img_size": sizes.image_size, "patch_size": sizes.patch_size}
    shape |= {"embed_dim": sizes.hidden_size, "depth": sizes.num_hidden_layers}
    shape |= {"num_heads": sizes.num_attention_heads}
    return timm.create_model("vit_base_patch16_siglip_224", num_classes=0, **shape)


def write_pairs(folder: Path, train: int = 8, val: int = 3, test: int = 3) -> Path:
    """Write `pairs.csv` and its pictures as notebook 03 does; returns its path."""
    rng = np.random.default_rng(0)
    outputs = folder / "outputs" / "smoke"
    frames = outputs / "03_build_corpus" / "all" / "frames"
    frames.mkdir(parents=True)
    rows = []
    for i, split in enumerate(["train"] * train + ["val"] * val + ["test"] * test):
        side, level = (("LCA", 60), ("RCA", 190))[i % 2]
        grey = (level + rng.integers(-20, 20, (256, 256))).astype(np.uint8)
        png = frames / f"{i:04d}.png"
        Image.fromarray(grey).save(png)
        row = {"case_id": f"case-{i:04d}", "patient_id": f"pt-{i:012x}", "laterality": side}
        row |= {"png": str(png.relative_to(outputs)), "split": split}
        row |= {"report_en": f"{60 + i}-year-old man with chest pain."}
        row |= {"report_ja": f"{60 + i}歳男性。胸痛。"}
        rows.append(row | dict(zip(("findings_en", "findings_ja"), FINDINGS[side], strict=True)))
    pairs = frames.with_name("pairs.csv")
    pd.DataFrame(rows).to_csv(pairs, index=False)
    return pairs


def pairs_in(folder: Path) -> Path:
    return folder / "outputs" / "smoke" / "03_build_corpus" / "all" / "pairs.csv"


def job_for(pairs, folder, backbone="gemma3", language="en", **changes) -> Job:
    """A small job of two epochs of two steps, without answers along the way."""
    settings = load_profile("smoke").finetune
    plain = {"batch_size": 4, "max_steps": -1, "epochs": 2.0, "dropout": 0.1, "eval_cases": 0}
    settings = settings.model_copy(update=plain | changes)
    return make_job(settings, backbone, language, pairs, folder, seed=3)


def examples_of(pairs, language="en"):
    return read_examples(pairs, language, pairs.parents[2])


def batch_of(name, pairs, n=3):
    """A twin, its processor, and a batch of the first cases as the plain collator makes it."""
    model, processor = load_backbone(name, "tiny", device="cpu")
    rows = examples_of(pairs).head(n).itertuples()
    talks = [conversation(open_picture(x.image, processor), x.prompt, x.answer) for x in rows]
    return model, processor, plain_collator(processor)(talks)


def loss_and_gradients(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    named = trainer.model.named_parameters()
    return loss.item(), {name: p.grad.clone() for name, p in named if p.grad is not None}


def output_of(script, *arguments, given="", **env):
    """What a script prints in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    how = {"capture_output": True, "text": True, "check": False, "cwd": ROOT}
    done = subprocess.run(command, input=given, env=os.environ | env, **how)
    assert done.returncode == 0, done.stderr
    return done.stdout
