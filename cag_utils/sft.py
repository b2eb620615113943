"""Supervised fine-tuning through TRL: LoRA on the language model, and the projector.

A `Job` holds everything a run depends on, and is written beside its results as `job.json`. The
same job runs in a notebook's process or on several GPUs (`torchrun -m cag_utils.sft job.json`),
and goes on from its last checkpoint if it was stopped.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
import trl.trainer.utils as trl_utils
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import (
    PaliGemmaProcessor,
    PrinterCallback,
    ProcessorMixin,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from cag_utils.adapters import (
    load_tuned,
    lora_config,
    raise_trained_to_float32,
    save_adapter,
    trainable_table,
)
from cag_utils.backbones import load_backbone
from cag_utils.examples import encode_prompts, open_picture, read_examples
from cag_utils.jobs import Job, base_name, last_checkpoint, start_folder
from cag_utils.sft_data import PaliGemmaCollator, to_dataset
from cag_utils.study import read_json

PROBES = 4  # validation cases whose next-token logits check a reloaded adapter
LOG_POINTS = 40  # points of a training curve


class Progress(TrainerCallback):
    """One plain progress bar, refreshed every half minute: a notebook stays readable."""

    def __init__(self, label: str):
        self.label = label

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar at the step a resumed run starts from."""
        hidden = not state.is_world_process_zero
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.label,
            mininterval=30,
            disable=hidden,
        )

    def on_step_end(self, args, state, control, **kwargs):
        """Count one optimiser step."""
        self.bar.update(1)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        self.bar.close()


def training_config(job: Job, n_train: int, bfloat16: bool) -> SFTConfig:
    """Translate a job into TRL's terms; every default that bites is set by name.

    Args:
        job: The run.
        n_train: Training cases; sets how often the loss is logged.
        bfloat16: Mixed precision; unasked, TRL would choose it on a CPU too.
    """
    s = job.finetune
    cases_a_step = s.batch_size * s.accumulation * int(os.environ.get("WORLD_SIZE", 1))
    updates = max(1, round(n_train * s.epochs / cases_a_step))
    updates = s.max_steps if s.max_steps > 0 else updates
    return SFTConfig(
        output_dir=str(job.path / "checkpoints"),
        max_length=None,  # TRL's 1024 can cut image tokens, and all that is to be learnt
        num_train_epochs=s.epochs,
        max_steps=s.max_steps,
        per_device_train_batch_size=s.batch_size,
        per_device_eval_batch_size=2 * s.batch_size,
        gradient_accumulation_steps=s.accumulation,
        optim="adamw_torch",
        learning_rate=s.learning_rate,
        lr_scheduler_type=s.schedule,
        warmup_steps=round(s.warmup_share * updates),
        weight_decay=s.weight_decay,
        bf16=bfloat16,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=job.size == "real",
        logging_steps=max(1, updates // LOG_POINTS),
        logging_first_step=True,
        eval_strategy="epoch",
        eval_on_start=True,
        save_strategy="epoch",
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=job.seed,
        data_seed=job.seed,
    )


def make_trainer(job: Job, callbacks: Sequence[TrainerCallback] = ()) -> SFTTrainer:
    """Load the base, put a fresh adapter on it, and hand both to TRL with the data.

    Args:
        job: The run.
        callbacks: Added to the progress bar.
    """
    cuda = torch.cuda.is_available()
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu"
    model, processor = load_backbone(job.backbone, job.size, device)
    examples = read_examples(job.pairs, job.language, job.outputs)
    data = {
        split: to_dataset(examples[examples["split"] == split], processor)
        for split in ("train", "val")
    }
    pali = isinstance(processor, PaliGemmaProcessor)
    lora = job.finetune.lora[job.backbone]
    trainer = SFTTrainer(
        model=model,
        args=training_config(job, len(data["train"]), model.dtype == torch.bfloat16),
        train_dataset=data["train"],
        eval_dataset=data["val"],
        processing_class=processor,
        data_collator=PaliGemmaCollator(processor) if pali else None,
        peft_config=lora_config(lora.rank, lora.alpha, job.finetune.dropout),
        callbacks=[Progress(f"{job.backbone} {job.language}"), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    raise_trained_to_float32(trainer.model)
    return trainer


@contextmanager
def answers_scored_only() -> Iterator[None]:
    """Let TRL score the answer's tokens alone on a CPU too, as it does on a GPU.

    Off a GPU, TRL 1.16 computes the loss of every token and then drops the prompt's, nine tokens
    in ten. The loss and the gradients are the same; a PaliGemma twin trains 1.7 times as fast.
    The switch is a private name: if a release renames it, training is slower and nothing else.
    """
    kept = getattr(trl_utils, "_use_triton", None)
    if kept is not None:
        trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        if kept is not None:
            trl_utils._use_triton = kept


def train(job: Job, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Run a job in this process, or this process's share of it under torchrun.

    Goes on from the last checkpoint when the folder holds one of the very same job.

    Args:
        job: The run.
        callbacks: For tests.

    Returns:
        The adapter's folder. `history.csv`, `trainable.csv` and `probe.safetensors` lie beside it.
    """
    trainer = make_trainer(job, callbacks)
    with answers_scored_only():
        trainer.train(resume_from_checkpoint=last_checkpoint(job))
    adapter = job.path / "adapter"
    if trainer.is_world_process_zero():
        trainable_table(trainer.model).to_csv(job.path / "trainable.csv", index=False)
        loss_history(trainer.state.log_history).to_csv(job.path / "history.csv", index=False)
        save_adapter(trainer.model, adapter, base_name(job))
        # without the mixed-precision wrapper, which a reloaded model will not have
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
        save_file(probe(job, model, trainer.processing_class), job.path / "probe.safetensors")
        shutil.rmtree(job.path / "checkpoints")  # done: a rerun starts afresh
    return adapter


def run_job(job: Job, processes: int = 1) -> Path:
    """Run a job here, or on several processes through torchrun; returns the adapter's folder.

    Args:
        job: The run.
        processes: One a GPU. More than one starts `torchrun`, because TRL refuses to drive
            several GPUs from a notebook's single process. Run so far with twins on two CPU
            processes, not on GPUs.

    Raises:
        RuntimeError: A process of several failed; its own message is above.
    """
    start_folder(job)
    if processes == 1:
        return train(job)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "-m", "cag_utils.sft"]
    done = subprocess.run([*command, str(job.path / "job.json")], check=False)
    if done.returncode:
        raise RuntimeError(f"training on {processes} processes failed; see the output above")
    return job.path / "adapter"


def loss_history(log: Sequence[Mapping]) -> pd.DataFrame:
    """Turn the Trainer's log into one row a measurement.

    Args:
        log: `trainer.state.log_history`.

    Returns:
        step, epoch, split (train or val), loss (mean over answer tokens), learning_rate (train
        rows only). Step 0 is the untouched base on val.
    """
    rows = [
        {
            "step": entry["step"],
            "epoch": entry["epoch"],
            "split": "train" if "loss" in entry else "val",
            "loss": entry.get("loss", entry.get("eval_loss")),
            "learning_rate": entry.get("learning_rate"),
        }
        for entry in log
        if "loss" in entry or "eval_loss" in entry
    ]
    table = pd.DataFrame(rows, columns=["step", "epoch", "split", "loss", "learning_rate"])
    return table.drop_duplicates(["step", "split"])  # a resumed run measures its start twice


def probe(job: Job, model: torch.nn.Module, processor: ProcessorMixin) -> dict[str, torch.Tensor]:
    """Return the logits of the first answer token for a few validation cases, (cases, tokens)."""
    examples = read_examples(job.pairs, job.language, job.outputs)
    few = examples[examples["split"] == "val"].head(PROBES)
    pictures = [open_picture(path, processor) for path in few["image"]]
    batch = encode_prompts(processor, pictures, list(few["prompt"])).to(model.device)
    with torch.inference_mode():
        logits = model(**batch, logits_to_keep=1).logits[:, -1]
    return {"logits": logits.float().cpu().contiguous()}


def reload_difference(job: Job) -> float:
    """Load base and adapter afresh and compare with the live model's logits.

    Returns:
        The largest absolute difference; 0 on one machine.
    """
    model, processor = load_tuned(job.backbone, job.size, job.path / "adapter")
    live = load_file(job.path / "probe.safetensors")["logits"]
    return float((probe(job, model, processor)["logits"] - live).abs().max())


if __name__ == "__main__":
    train(Job(**read_json(Path(sys.argv[1]))))
