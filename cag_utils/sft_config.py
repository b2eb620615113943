"""A fine-tuning job in the Trainer's terms."""

import os

import torch
from trl import SFTConfig

from cag_utils.jobs import Job

LOG_POINTS = 40  # points of a training curve


def training_config(job: Job, n_train: int, bfloat16: bool) -> SFTConfig:
    """Translate a job into TRL's terms; every default that bites is set by name.

    Args:
        job: The run. Its batch size is that of all processes together: each takes its share.
        n_train: Training cases; sets how often the loss is logged.
        bfloat16: Mixed precision; unasked, TRL would choose it on a CPU too.

    Raises:
        ValueError: The processes cannot share a batch evenly.
    """
    s = job.finetune
    each = share_of_batch(s.batch_size, int(os.environ.get("WORLD_SIZE", 1)))
    updates = max(1, round(n_train * s.epochs / (s.batch_size * s.accumulation)))
    updates = s.max_steps if s.max_steps > 0 else updates
    return SFTConfig(
        output_dir=str(job.path / "checkpoints"),
        max_length=None,  # TRL's 1024 can cut image tokens, and all that is to be learnt
        remove_unused_columns=False,  # the collator opens the pictures
        num_train_epochs=s.epochs,
        max_steps=s.max_steps,
        per_device_train_batch_size=each,
        per_device_eval_batch_size=2 * each,
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
        load_best_model_at_end=s.patience > 0,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        report_to="none",  # ours is added by name, with a folder of its own
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=job.seed,
        data_seed=job.seed,
    )


def share_of_batch(batch_size: int, n_processes: int) -> int:
    """Return the cases one process takes, so that all together take one batch.

    Raises:
        ValueError: It does not divide.
    """
    if batch_size % n_processes:
        raise ValueError(
            f"finetune.batch_size {batch_size} cannot be shared by {n_processes} processes: choose "
            "a multiple, and a smaller finetune.accumulation for the same number of cases a step"
        )
    return batch_size // n_processes
