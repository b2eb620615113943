"""Supervised fine-tuning through TRL: LoRA on the language model, and the projector.

A `Job` holds everything a run depends on, and is written beside its results as `job.json`. The
same job runs in a notebook's process or on several GPUs (`accelerate launch --module cag_utils.sft
job.json`), and goes on from its last checkpoint if it was stopped.
"""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProcessorMixin,
    TrainerCallback,
    TrainerState,
)
from trl import SFTConfig

from cag_utils.adapters import (
    lora_config,
    lora_optimiser,
    raise_trained_to_float32,
    save_adapter,
    trainable_table,
)
from cag_utils.answer_scores import AnswerScorer
from cag_utils.backbones import load_backbone
from cag_utils.examples import read_examples
from cag_utils.jobs import Job, base_name, last_checkpoint, start_folder
from cag_utils.parity import merge_adapter, probe, reload_difference
from cag_utils.sft_callbacks import (
    Patience,
    Progress,
    ProjectorFirst,
    RunLog,
    evaluations_since_best,
)
from cag_utils.sft_config import share_of_batch, training_config
from cag_utils.sft_data import CaseCollator, to_cases
from cag_utils.sft_history import answer_history, loss_history
from cag_utils.sft_trainer import CaseTrainer
from cag_utils.study import read_json
from cag_utils.tower_features import FeatureStore, accept_features

__all__ = [
    "make_trainer",
    "merge_adapter",
    "probe",
    "reload_difference",
    "run_job",
    "train",
]

FSDP = Path(__file__).parent / "templates" / "fsdp.yaml"
PLAIN_PARALLEL = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
PLAIN_PARALLEL += ["--dynamo_backend", "no"]
FOLLOW = "--end-with-parent"


def make_trainer(job: Job, callbacks: Sequence[TrainerCallback] = ()) -> CaseTrainer:
    """Load the base, put a fresh adapter on it, and hand both to TRL with the data.

    Args:
        job: The run.
        callbacks: Added to the run's own.

    Raises:
        ValueError: 4-bit weights are asked for and cannot be had, or as `training_config`.
    """
    s = job.finetune
    where = {"quantise": s.quantise} | job.source
    model, processor = load_backbone(job.backbone, job.size, own_device(), **where)
    examples = read_examples(job.pairs, job.language, job.outputs)
    train, val = (to_cases(examples[examples["split"] == x], processor) for x in ("train", "val"))
    config = training_config(job, len(train), model.dtype == torch.bfloat16)
    store = None
    if s.cache_features:
        store = fill_store(job, model, processor, [*train["image"], *val["image"]], config)
    lora = s.lora[job.backbone]
    trainer = CaseTrainer(
        model=model,
        args=config,
        train_dataset=train,
        eval_dataset=val.sort("length"),
        processing_class=processor,
        data_collator=CaseCollator(processor, store),
        peft_config=lora_config(lora.rank, lora.alpha, s.dropout),
        callbacks=[*own_callbacks(job), *callbacks],
        scorer=AnswerScorer(job, processor) if s.eval_cases else None,
    )
    trainer.remove_callback(PrinterCallback)
    raise_trained_to_float32(trainer.model)
    accept_features(trainer.model)
    if s.projector_rate:  # else the Trainer makes its own
        rates = s.learning_rate, s.projector_rate, s.weight_decay
        trainer.optimizer = lora_optimiser(trainer.model, *rates)
    return trainer


def own_device() -> str:
    """Return where this process computes: under a launcher its own GPU, else the first, or CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def own_callbacks(job: Job) -> list[TrainerCallback]:
    """Return what every run of these settings has beside it."""
    made = [Progress(f"{job.backbone} {job.language}"), RunLog(job.path / "tensorboard")]
    if job.finetune.warmup_projector_steps:
        made.append(ProjectorFirst(job.finetune.warmup_projector_steps))
    if job.finetune.patience:
        made.append(Patience(job.finetune.patience))
    return made


def fill_store(
    job: Job,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[str],
    config: SFTConfig,
) -> FeatureStore:
    """Compute the tower's tokens that are not on disk yet, each process a share of them."""
    store = FeatureStore(job.features, model, processor)
    store.fill(images[config.process_index :: config.world_size])
    config.distributed_state.wait_for_everyone()
    store.fill(images)  # the others' shares are there now
    return store


def train(job: Job, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Run a job in this process, or this process's share of it under a launcher.

    Goes on from the last checkpoint when the folder holds one of the very same job.

    Args:
        job: The run.
        callbacks: For tests.

    Returns:
        The adapter's folder. Beside it lie `history.csv`, `eval_history.csv` (scores of answers),
        `trainable.csv`, `probe.safetensors` and `tensorboard/`.
    """
    trainer = make_trainer(job, callbacks)
    go_on(trainer, last_checkpoint(job), job.finetune.patience)
    adapter = job.path / "adapter"
    if trainer.is_world_process_zero():
        log = trainer.state.log_history
        trainable_table(trainer.model).to_csv(job.path / "trainable.csv", index=False)
        loss_history(log).to_csv(job.path / "history.csv", index=False)
        answer_history(log).to_csv(job.path / "eval_history.csv", index=False)
        save_adapter(trainer.model, adapter, base_name(job))
        # without the mixed-precision wrapper, which a reloaded model will not have
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
        save_file(probe(job, model, trainer.processing_class), job.path / "probe.safetensors")
        shutil.rmtree(job.path / "checkpoints")  # done: a rerun starts afresh
    return adapter


def go_on(trainer: CaseTrainer, checkpoint: str | None, patience: int) -> None:
    """Train, from a checkpoint if there is one, unless patience had run out when it was written.

    Args:
        trainer: From `make_trainer`.
        checkpoint: Folder, or None for the beginning.
        patience: The setting; 0 for none.
    """
    if checkpoint and patience:
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        if evaluations_since_best(state.log_history) >= patience:
            trainer.state = state
            trainer._load_best_model()
            return
    trainer.train(resume_from_checkpoint=checkpoint)


def run_job(job: Job, processes: int = 1, accelerate_config: str | Path = "") -> Path:
    """Run a job here, or on several processes through accelerate; returns the adapter's folder.

    Several processes take one batch together, so the settings mean the same on any number of GPUs.
    A checkpoint that does not fit one GPU is sharded: `accelerate_config=FSDP`, the committed
    settings of `cag_utils/templates/fsdp.yaml`, which also says how to start it by hand.

    Args:
        job: The run.
        processes: One a GPU. More than one starts `accelerate launch`, because TRL refuses to drive
            several GPUs from a notebook's single process. Run so far with twins on two CPU
            processes, not on GPUs.
        accelerate_config: Accelerate's YAML; plain data parallelism if empty.

    Raises:
        ValueError: The processes cannot share a batch evenly.
        RuntimeError: A process of several failed; its own message is above.
    """
    share_of_batch(job.finetune.batch_size, processes)
    start_folder(job)
    if processes == 1:
        return train(job)
    # `--cpu` would silently run one process (facts); without a GPU the job itself chooses gloo
    how = ["--config_file", str(accelerate_config)] if accelerate_config else PLAIN_PARALLEL
    command = [sys.executable, "-m", "accelerate.commands.launch", *how, "--num_processes"]
    command += [str(processes), "--main_process_port", "0", "--module", "cag_utils.sft"]
    # the pipe stays open for as long as this process lives; see `end_with_parent`
    with subprocess.Popen(
        [*command, str(job.path / "job.json"), FOLLOW], stdin=subprocess.PIPE
    ) as started:
        code = started.wait()
    if code:
        raise RuntimeError(f"training on {processes} processes failed; see the output above")
    return job.path / "adapter"


def end_with_parent() -> None:
    """End this process when the one that launched it ends, also after a kill.

    An orphan would train on, and be a second writer in the folder of a rerun.
    """
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    if FOLLOW in sys.argv:
        threading.Thread(target=end_with_parent, daemon=True).start()
    train(Job(**read_json(Path(sys.argv[1]))))
