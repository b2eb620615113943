"""Our fine-tuning against TRL's trainer as it comes, as a ratio of cases a second over epochs.

Run: `python tests/benchmarks/bench_sft.py [--cases N]`. Both sides train the same shipped twin
with the same LoRA on the same cases, batch, rate and number of epochs (five), on one thread;
pictures and texts are the phantom's. Ours is the study's own path: tower features computed once
(that time counts, on an empty store), tokens made once, batches of like length, answers scored
only. TRL's side is `SFTTrainer` with its own collator, sampler and loss, which opens each picture
and runs the tower in every step; on a CPU it also scores the prompt's tokens.

TRL cannot feed PaliGemma at all (its collator raises), so there the other side is TRL's trainer
with the study's collator, without store and buckets. Its model is loaded by transformers alone,
with the attention it chooses. Neither side evaluates or saves.

With CUDA besides (written on a machine without, not run yet): Gemma3-4B's published configuration
with random weights in bfloat16, ours alone: tokens a second, peak memory, and the share of the
card's peak. Floating-point operations are counted as 2 x parameters of the language model a token
forwards, as many for the gradient of activations (LoRA's own weights are half a per cent), and
once more for gradient checkpointing.
"""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, List
from datasets import Image as Picture
from peft import get_peft_model
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PrinterCallback,
)
from trl import SFTTrainer

from cag_utils.corpus.examples import read_examples
from cag_utils.phantom.clinic.findings import decide_plan, write_findings
from cag_utils.phantom.clinic.notes import write_report
from cag_utils.phantom.clinic.patients import draw_record
from cag_utils.phantom.stills import still
from cag_utils.profiles import load_profile
from cag_utils.segments import AHA_SEGMENTS, laterality_of
from cag_utils.vlm import loading, sft
from cag_utils.vlm.data import accept_features, conversation, plain_collator
from cag_utils.vlm.loading import load_backbone
from cag_utils.vlm.lora import lora_config, raise_trained_to_float32
from cag_utils.vlm.sft import Job, make_job, training_config

EPOCHS, ROUNDS, N_DRAWN = 5, 3, 12
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bfloat16, dense, data sheets
GEMMA3_4B_TEXT = dict(  # the published config.json of google/gemma-3-4b-it
    hidden_size=2560,
    intermediate_size=10240,
    num_hidden_layers=34,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    sliding_window=1024,
)
GEMMA3_4B_VISION = dict(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    image_size=896,
    patch_size=14,
    vision_use_head=False,
)


def write_corpus(outputs: Path, n_cases: int) -> Path:
    """Write phantom stills of 512 px with drawn reports and findings, as notebook 03 does."""
    rng = np.random.default_rng(0)
    folder = outputs / "03_build_corpus" / "all"
    (folder / "frames").mkdir(parents=True)
    stills = [still(seed, 512).image for seed in range(N_DRAWN)]
    rows = []
    for i in range(n_cases + 2):
        side = str(rng.choice(["LCA", "RCA"]))
        known = [s for s in AHA_SEGMENTS if laterality_of(s) == side]
        chosen = rng.choice(known, size=int(rng.integers(0, 4)), replace=False)
        lesions = [{"segment": int(s), "percent": int(rng.choice([50, 75, 90]))} for s in chosen]
        record = draw_record(rng, lesions, str(rng.choice(["M", "F"])))
        report = write_report(rng, record)
        findings = write_findings(lesions, side, decide_plan(record, lesions))
        png = folder / "frames" / f"{i:04d}.png"
        # a pixel of its own, so that no two pictures share a file in the store
        grey = stills[i % N_DRAWN].copy()
        grey[0, :2] = divmod(i, 256)
        Image.fromarray(grey).save(png)
        row = {"case_id": f"case-{i:04d}", "patient_id": f"pt-{i}", "laterality": side}
        row |= {"png": str(png.relative_to(outputs)), "split": "train" if i < n_cases else "val"}
        row |= {f"report_{k}": v for k, v in report.items()}
        rows.append(row | {f"findings_{k}": v for k, v in findings.items()})
    pd.DataFrame(rows).to_csv(folder / "pairs.csv", index=False)
    return folder / "pairs.csv"


def job_of(pairs: Path, folder: Path, backbone: str) -> Job:
    """The phantom's settings over five epochs, without what is no training."""
    settings = load_profile("phantom").finetune
    both = {"learning_rate": 1e-3, "projector_rate": 0.0}  # one rate for all, which TRL has too
    settings = settings.model_copy(update={"epochs": float(EPOCHS), "eval_cases": 0} | both)
    return make_job(settings, backbone, "en", pairs, folder, seed=0, features=folder / "features")


def quiet(config):
    """Neither side evaluates or saves."""
    config.eval_strategy = config.save_strategy = "no"
    config.eval_on_start = False
    return config


@contextmanager
def ours_made_quiet():
    """Let `make_trainer` build its trainer with a quiet configuration."""
    kept = sft.training_config
    sft.training_config = lambda *arguments: quiet(kept(*arguments))
    try:
        yield
    finally:
        sft.training_config = kept


def our_way(job: Job) -> float:
    """Train with the study's trainer, features computed on the way; return the last loss."""
    with ours_made_quiet():
        return sft.make_trainer(job).train().training_loss


def plain_way(job: Job) -> float:
    """Train with TRL's trainer as it comes; return the mean loss."""
    _, processor = load_backbone(job.backbone, job.size)
    folder = loading.WEIGHTS / job.backbone
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    examples = read_examples(job.pairs, job.language, job.outputs)
    rows = examples[examples["split"] == "train"].itertuples()
    talks = [conversation(row.image, row.prompt, row.answer) for row in rows]
    data = Dataset.from_list(talks).cast_column("images", List(Picture(mode="RGB")))
    config = quiet(training_config(job, len(data), model.dtype == torch.bfloat16))
    config.remove_unused_columns = True
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=processor,
        data_collator=plain_collator(processor) if job.backbone == "paligemma2" else None,
        peft_config=lora_config(job.lora.rank, job.lora.alpha),
    )
    trainer.remove_callback(PrinterCallback)
    raise_trained_to_float32(trainer.model)
    return trainer.train().training_loss


def compare(pairs: Path, folder: Path, backbone: str) -> dict[str, float]:
    """Train both ways in turn; cases a second and the ratio, medians over the rounds."""
    n_cases = int((pd.read_csv(pairs)["split"] == "train").sum())
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for i in range(ROUNDS):
        job = job_of(pairs, folder / f"{backbone}_{i}", backbone)
        losses = {}
        for name, way in (("ours", our_way), ("plain", plain_way)):
            start = time.perf_counter()
            losses[name] = way(job)
            seconds[name].append(time.perf_counter() - start)
        assert abs(losses["ours"] / losses["plain"] - 1) < 0.1, f"they learn otherwise: {losses}"
    ratios = [p / o for o, p in zip(seconds["ours"], seconds["plain"], strict=True)]
    rate = {k: EPOCHS * n_cases / statistics.median(v) for k, v in seconds.items()}
    stem = f"sft_{backbone}"
    return {
        f"{stem}_times_plain_trl": round(statistics.median(ratios), 2),
        f"{stem}_cases_per_second": round(rate["ours"], 2),
        f"{stem}_plain_cases_per_second": round(rate["plain"], 2),
    }


def real_config() -> Gemma3Config:
    """Return Gemma3-4B's published sizes."""
    return Gemma3Config(
        text_config=AutoConfig.for_model("gemma3_text", **GEMMA3_4B_TEXT),
        vision_config=AutoConfig.for_model("siglip_vision_model", **GEMMA3_4B_VISION),
        mm_tokens_per_image=256,
    )


def real_model(device: str) -> torch.nn.Module:
    """Return Gemma3-4B with random weights in bfloat16 and the paper's adapter, ready to train."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Gemma3ForConditionalGeneration(real_config())
    torch.set_default_dtype(torch.float32)
    model = get_peft_model(model, lora_config(8, 8))
    raise_trained_to_float32(model)
    accept_features(model)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    return model.train()


def real_batch(n_cases: int, length: int = 640, n_scored: int = 100) -> dict[str, torch.Tensor]:
    """Return random tokens of as many cases: 256 of a picture, a report, and the answer."""
    image = real_config().image_token_index
    ids = torch.randint(1000, 200_000, (n_cases, length), device="cuda")
    ids[:, 4:260] = image
    labels = ids.clone()
    labels[:, :-n_scored] = -100
    tokens = torch.randn(n_cases, 4096, 1152, device="cuda", dtype=torch.bfloat16)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return batch | {"token_type_ids": (ids == image).long(), "tower_features": tokens}


def language_parameters(model: torch.nn.Module) -> int:
    """Count the weights that every token passes: without embeddings and tower."""
    language = model.get_base_model().model.language_model
    return sum(p.numel() for name, p in language.named_parameters() if "embed_tokens" not in name)


def real_size(n_steps: int = 12, n_cases: int = 4) -> dict[str, float]:
    """Train Gemma3-4B of random weights on random tokens; needs CUDA."""
    model, batch = real_model("cuda"), real_batch(n_cases)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    seconds = []
    for _ in range(n_steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    rate = batch["input_ids"].numel() / statistics.median(seconds[3:])
    card = torch.cuda.get_device_name()
    peak = next((v for k, v in PEAK_FLOPS.items() if k in card), None)
    share = round(rate * 6 * language_parameters(model) / peak, 3) if peak else None
    return {
        "sft_real_tokens_per_second": round(rate),
        "sft_real_peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "sft_real_share_of_peak": share,
        "sft_real_card": card,
    }


def main(n_cases: int = 48) -> dict[str, float]:
    """Measure with the shipped twins; on CUDA with Gemma3-4B too."""
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = write_corpus(folder / "outputs" / "bench", n_cases)
        for backbone in ("gemma3", "paligemma2"):
            found |= compare(pairs, folder, backbone)
    if torch.cuda.is_available():
        found |= real_size()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=48, help="training cases")
    print(json.dumps(main(parser.parse_args().cases)))
