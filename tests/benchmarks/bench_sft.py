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
from PIL import Image
from transformers import AutoModelForImageTextToText, PrinterCallback
from trl import SFTTrainer

from cag_utils.corpus.examples import read_examples
from cag_utils.phantom.clinic.findings import decide_plan, write_findings
from cag_utils.phantom.clinic.notes import write_report
from cag_utils.phantom.clinic.patients import draw_record
from cag_utils.phantom.stills import still
from cag_utils.profiles import load_profile
from cag_utils.segments import AHA_SEGMENTS, laterality_of
from cag_utils.vlm import loading, sft
from cag_utils.vlm.data import conversation, plain_collator
from cag_utils.vlm.loading import load_backbone
from cag_utils.vlm.lora import lora_config, raise_trained_to_float32
from cag_utils.vlm.sft import Job, make_job, training_config

EPOCHS, ROUNDS, N_DRAWN = 5, 3, 12


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


def main(n_cases: int = 48) -> dict[str, float]:
    """Measure with the shipped twins."""
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = write_corpus(folder / "outputs" / "bench", n_cases)
        for backbone in ("gemma3", "paligemma2"):
            found |= compare(pairs, folder, backbone)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=48, help="training cases")
    print(json.dumps(main(parser.parse_args().cases)))
