"""Supervised fine-tuning through TRL: LoRA on the language model, and the projector.

A `Job` holds everything a run depends on, and is written beside its results as `job.json`. The
same job runs in a notebook's process or on several GPUs (`accelerate launch --module
cag_utils.vlm.sft job.json`), and goes on from its last checkpoint if it was stopped.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch
import trl.trainer.utils as trl_utils
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    EarlyStoppingCallback,
    PrinterCallback,
    ProcessorMixin,
    TrainerCallback,
    TrainerState,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTConfig, SFTTrainer

from cag_utils.backbones import get_backbone
from cag_utils.corpus.examples import encode_prompts, open_picture, read_examples
from cag_utils.params import check_choice
from cag_utils.profiles import Finetune, Lora
from cag_utils.scores.entities import Entities, read_entities
from cag_utils.scores.rubric import score, truth_of
from cag_utils.shipped import checksums
from cag_utils.study import PACKAGE, read_json, write_json
from cag_utils.tables import load_table, write_table
from cag_utils.vlm.data import CaseCollator, FeatureStore, accept_features, to_cases
from cag_utils.vlm.generate import generate_answers
from cag_utils.vlm.loading import SIZES, load_backbone
from cag_utils.vlm.lora import (
    load_tuned,
    lora_config,
    lora_optimiser,
    raise_trained_to_float32,
    save_adapter,
    trainable_table,
)
from cag_utils.workflow import follow_parent, launch

SEAL = "whole.json"  # in a checkpoint: its files' hashes, written last


@dataclass(frozen=True)
class Job:
    """Everything one fine-tuning run depends on."""

    backbone: str  # a key of `backbones.BACKBONES`
    size: str  # tiny or real
    language: str  # en or ja
    pairs: str  # path of notebook 03's `pairs.csv`
    pairs_hash: str  # of its content: other pairs are another job
    outputs: str  # the folder its pictures are relative to
    folder: str  # the run's
    features: str  # where tower features are kept; runs on the same pictures share it
    seed: int  # of the adapter's start, the order of cases, and dropout
    settings: dict = field(repr=False)  # the profile's `finetune` section

    def __post_init__(self):
        """Raise ValueError for an unknown backbone, or settings that are no `finetune` section."""
        get_backbone(self.backbone)
        Finetune.model_validate(self.settings)

    @property
    def finetune(self) -> Finetune:
        """The settings, checked."""
        return Finetune.model_validate(self.settings)

    @property
    def lora(self) -> Lora:
        """Rank and alpha."""
        return self.finetune.lora[self.backbone]

    @property
    def source(self) -> dict[str, str]:
        """What `load_backbone` and `load_tuned` get beside name and size."""
        own, swapped = self.finetune.checkpoints, get_backbone(self.backbone).tower
        tower = self.finetune.tower_checkpoint if swapped else ""
        return {"checkpoint": own.get(self.backbone, ""), "tower_checkpoint": tower}

    @property
    def path(self) -> Path:
        """The run's folder as a path."""
        return Path(self.folder)

    def examples(self) -> pd.DataFrame:
        """Read all cases, see `examples.read_examples`."""
        return read_examples(self.pairs, self.language, self.outputs)


def make_job(
    settings: Finetune,
    backbone: str,
    language: str,
    pairs: str | Path,
    folder: str | Path,
    seed: int,
    size: str = "",
    epochs: float = 0.0,
    features: str | Path = "",
) -> Job:
    """Describe a run from a profile's settings and what a notebook changes in them.

    Args:
        settings: `profile.finetune`.
        pairs: `outputs/<profile>/03_build_corpus/all/pairs.csv`.
        size: tiny or real; the profile's if empty.
        epochs: The profile's if 0.
        features: Folder of tower features; `outputs/<profile>/04_finetune/tower_features` if empty.

    Raises:
        ValueError: Unknown backbone, size or language, or negative epochs.
    """
    check_choice("language", language, settings.languages)
    size = check_choice("size", size or settings.size, SIZES)
    if epochs < 0:
        raise ValueError(f"epochs must be > 0, or 0 for the profile's, got {epochs}")
    entry = get_backbone(backbone)
    lora = settings.lora.get(backbone) or Lora(rank=entry.lora_rank, alpha=entry.lora_alpha)
    changed = {"epochs": float(epochs or settings.epochs), "lora": {backbone: lora}}
    outputs = Path(pairs).parents[2]  # outputs/<profile>/
    return Job(
        backbone=backbone,
        size=size,
        language=language,
        pairs=str(pairs),
        pairs_hash=hashlib.sha256(Path(pairs).read_bytes()).hexdigest()[:16],
        outputs=str(outputs),
        folder=str(folder),
        features=str(features or outputs / "04_finetune" / "tower_features"),
        seed=seed,
        settings=settings.model_copy(update=changed).model_dump(),
    )


def start_folder(job: Job) -> None:
    """Write `job.json`; leave only whole checkpoints, and logs, of the very same job."""
    job.path.mkdir(parents=True, exist_ok=True)
    path = job.path / "job.json"
    same = path.is_file() and read_json(path) == asdict(job)
    for folder in _checkpoints(job):
        if not (same and is_whole(folder)):
            shutil.rmtree(folder)
    if last_checkpoint(job) is None:
        shutil.rmtree(job.path / "tensorboard", ignore_errors=True)
    write_json(path, asdict(job))


def last_checkpoint(job: Job) -> str | None:
    """Return the last whole checkpoint a stopped run left, if any."""
    return next((str(folder) for folder in _checkpoints(job)[::-1] if is_whole(folder)), None)


def seal(folder: Path) -> None:
    """Write what a checkpoint holds, as its last file and at once: from now on it counts."""
    write_json(folder / SEAL, _digests(folder))


def is_whole(folder: Path) -> bool:
    """Say whether a checkpoint holds what its seal says, byte for byte."""
    path = folder / SEAL
    return path.is_file() and read_json(path) == _digests(folder)


def _checkpoints(job: Job) -> list[Path]:
    found = (job.path / "checkpoints").glob("checkpoint-*")
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def _digests(folder: Path) -> dict[str, str]:
    found = checksums(folder, "*").items()
    return {name: digest for name, digest in found if Path(name).name != SEAL}


def base_name(job: Job) -> str:
    """Return the base's name for the adapter's card: a repository, or a folder without its path."""
    checkpoint, own = get_backbone(job.backbone).checkpoint, job.source["checkpoint"]
    if job.size == "tiny":
        return f"cag_utils/weights/{checkpoint.twin}"
    return (Path(own).name if Path(own).is_dir() else own) if own else checkpoint.repo


class Progress(TrainerCallback):
    """One plain progress bar, refreshed every half minute: a notebook stays readable."""

    def __init__(self, label: str):
        self.label = label

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar at the step a resumed run starts from."""
        shown = {"mininterval": 30, "disable": not state.is_world_process_zero}
        self.bar = tqdm(None, self.label, state.max_steps, initial=state.global_step, **shown)

    def on_step_end(self, args, state, control, **kwargs):
        """Count one optimiser step."""
        self.bar.update(1)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        self.bar.close()


class ProjectorFirst(TrainerCallback):
    """Trains the projector alone for the first steps; what is frozen depends on the step alone.

    A replaced tower speaks another language than the projector knows; until that is learnt, LoRA
    would learn to make do with noise.
    """

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        """Freeze LoRA before the step that ends the head start, thaw it after."""
        for name, values in model.named_parameters():
            if "lora_" in name:
                values.requires_grad_(state.global_step >= self.steps)


class Seal(TrainerCallback):
    """Makes a checkpoint count when all processes have written their parts of it."""

    def on_save(self, args, state, control, **kwargs):
        """Seal it, on the first process."""
        args.distributed_state.wait_for_everyone()
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


LONGEST = {"tiny": 96, "real": 256}  # tokens of an answer; the phantom's are shorter
SCORES = ("segment", "grade", "laterality", "plan", "overall")


class AnswerScorer:
    """Lets a model in training answer, and marks the answers.

    The loss says how surprising the true words are; it hardly moves when the segment is wrong and
    all else is right. These scores do.
    """

    def __init__(self, job: Job, processor: ProcessorMixin):
        """Choose as many cases as the settings say: validation, evenly spread, always the same."""
        examples = job.examples()
        val = examples[examples["split"] == "val"]
        self.n_cases = min(job.finetune.eval_cases, len(val))
        self.cases = val.iloc[[i * len(val) // self.n_cases for i in range(self.n_cases)]]
        pairs = load_table(job.pairs).set_index("case_id")
        self.truths = [truth_of(pairs.loc[c], job.language) for c in self.cases["case_id"]]
        self.job, self.processor = job, processor

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        """Return the mean of each of `SCORES` over the cases whose truth is known."""
        was_training, s = model.training, self.job.finetune
        asked = list(self.cases["image"]), list(self.cases["prompt"])
        features = self.job.features if s.cache_features else ""
        sizes = 2 * s.batch_size, LONGEST[self.job.size]  # no gradients: as for the loss
        answers = generate_answers(model.eval(), self.processor, *asked, *sizes, "", features)
        model.train(was_training)
        read = [read_entities(text, self.job.language) for text in answers["output"]]
        marks = pd.DataFrame(map(mark, read, self.truths), columns=list(SCORES), dtype=float)
        return marks.mean().dropna().to_dict()


def mark(output: Entities, truth: Entities) -> dict[str, float | None]:
    """Mark what one answer states.

    Returns:
        `segment` (the very AHA numbers), `laterality`, `plan`: 0 or 1; `grade`: share of the true
        significant lesions that are named with a grade at most one AHA step off; `overall`: the
        rubric's 0 to 10. None where the truth is unknown, for `grade` where there is no lesion.
    """
    found = score(output, truth)
    grade = found["grades_near"] / found["lesions_true"] if found["lesions_true"] else None
    named = found["segment_match"], grade, found["laterality_match"], found["plan_right"]
    return dict(zip(SCORES, (*named, found["overall"]), strict=True))


PREFIX = "eval_answers_"  # of the scores in the Trainer's log


def loss_history(log: Sequence[Mapping]) -> pd.DataFrame:
    """Turn `trainer.state.log_history` into one row a measurement.

    Returns:
        step, epoch, split (train or val), loss (mean over answer tokens), learning_rate (train
        rows only). Step 0 is the untouched base on val.
    """
    rows = []
    for entry in log:
        split, key = ("train", "loss") if "loss" in entry else ("val", "eval_loss")
        if key in entry:
            rate = entry.get("learning_rate")
            rows.append((entry["step"], entry["epoch"], split, entry[key], rate))
    return pd.DataFrame(rows, columns=["step", "epoch", "split", "loss", "learning_rate"])


def answer_history(log: Sequence[Mapping]) -> pd.DataFrame:
    """Turn `trainer.state.log_history` into one row an evaluation by generation.

    Returns:
        step, epoch, and `SCORES`: segment, grade, laterality and plan (shares, 0 to 1), overall (0
        to 10); missing where no truth is known. Empty if no answers were scored.
    """
    scored = [entry for entry in log if any(key.startswith(PREFIX) for key in entry)]
    rows = [(e["step"], e["epoch"], *(e.get(PREFIX + s) for s in SCORES)) for e in scored]
    return pd.DataFrame(rows, columns=["step", "epoch", *SCORES])


class EpochGroups(LengthGroupedSampler):
    """transformers' batches of like length, in an order that seed and epoch alone decide.

    As it comes (`train_sampling_strategy="group_by_length"`) the sampler draws from torch's global
    generator, which differs between processes once they have dropped out different numbers.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        super().__init__(batch_size, lengths=list(lengths))
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the Trainer calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield the cases' indices."""
        self.generator = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
        yield from super().__iter__()


class CaseTrainer(SFTTrainer):
    """Trains on `data.to_cases`, batched by length; scores answers after each evaluation."""

    scorer: AnswerScorer | None = None  # none for the loss alone

    def train(self, *args, **kwargs):
        """Train, scoring the answers' tokens alone."""
        with answers_scored_only():
            return super().train(*args, **kwargs)

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        data = self.train_dataset if train_dataset is None else train_dataset
        return EpochGroups(data["length"], self.args.train_batch_size, self.args.data_seed)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Measure the loss, then let the first process score answers and log them."""
        metrics = super().evaluate(*args, **kwargs)
        if self.scorer is not None and self.is_world_process_zero():
            scores = self.scorer(self.model)
            self.log({PREFIX + name: value for name, value in scores.items()})
        return metrics


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


LOG_POINTS = 40  # points of a training curve


def training_config(job: Job, n_train: int, bfloat16: bool) -> SFTConfig:
    """Translate a job into TRL's terms; every default that bites is set by name.

    Args:
        job: The run. Its batch size is that of all processes together: each takes its share.
        n_train: Training cases; sets how often the loss is logged.
        bfloat16: Mixed precision; unasked, TRL would choose it on a CPU too.

    Raises:
        ValueError: As `share_of_batch`.
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
        eval_on_start=last_checkpoint(job) is None,  # a resumed run has measured its start
        save_strategy="epoch",
        save_total_limit=2,  # while one is written, or if it is damaged, there is another
        load_best_model_at_end=s.patience > 0,
        restore_callback_states_from_checkpoint=s.patience > 0,  # how often it has been patient
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
        what = f"finetune.batch_size {batch_size} cannot be shared by {n_processes} processes"
        fix = "a multiple, and a smaller finetune.accumulation for the same number of cases a step"
        raise ValueError(f"{what}: choose {fix}")
    return batch_size // n_processes


FSDP = PACKAGE / "templates" / "fsdp.yaml"


def make_trainer(job: Job, callbacks: Sequence[TrainerCallback] = ()) -> CaseTrainer:
    """Load the base, put a fresh adapter on it, and hand both to TRL with the data.

    Raises:
        ValueError: 4-bit weights are asked for and cannot be had, or as `training_config`.
    """
    s = job.finetune
    where = {"quantise": s.quantise} | job.source
    # under a launcher each process has a GPU of its own
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    model, processor = load_backbone(job.backbone, job.size, device, **where)
    examples = job.examples()
    train, val = (to_cases(examples[examples["split"] == x], processor) for x in ("train", "val"))
    config = training_config(job, len(train), model.dtype == torch.bfloat16)
    store = None
    if s.cache_features:
        store = FeatureStore(job.features, model, processor)
        images = [*train["image"], *val["image"]]
        store.fill(images[config.process_index :: config.world_size])
        config.distributed_state.wait_for_everyone()
        store.fill(images)  # the other processes' shares are there now
    targets = get_backbone(job.backbone).lora_targets
    trainer = CaseTrainer(
        model=model,
        args=config,
        train_dataset=train,
        eval_dataset=val.sort("length"),
        processing_class=processor,
        data_collator=CaseCollator(processor, store),
        peft_config=lora_config(job.lora.rank, job.lora.alpha, s.dropout, targets),
        callbacks=[*own_callbacks(job), *callbacks],
    )
    trainer.scorer = AnswerScorer(job, processor) if s.eval_cases else None
    trainer.remove_callback(PrinterCallback)
    raise_trained_to_float32(trainer.model)
    accept_features(trainer.model)
    if s.projector_rate:  # else the Trainer makes its own
        rates = s.learning_rate, s.projector_rate, s.weight_decay
        trainer.optimizer = lora_optimiser(trainer.model, *rates)
    return trainer


def own_callbacks(job: Job) -> list[TrainerCallback]:
    """Return what every run of these settings has beside it."""
    log = TensorBoardCallback()
    log.logging_dir = str(job.path / "tensorboard")  # the library takes it from the environment
    made = [Progress(f"{job.backbone} {job.language}"), log, Seal()]
    if job.finetune.warmup_projector_steps:
        made.append(ProjectorFirst(job.finetune.warmup_projector_steps))
    if job.finetune.patience:
        made.append(EarlyStoppingCallback(job.finetune.patience))
    return made


def train(job: Job, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Run a job in this process, or this process's share of it under a launcher.

    Goes on from the last checkpoint when the folder holds one of the very same job.

    Returns:
        The adapter's folder. Beside it lie `history.csv`, `eval_history.csv` (scores of answers),
        `trainable.csv`, `probe.safetensors` and `tensorboard/`.
    """
    trainer = make_trainer(job, callbacks)
    go_on(trainer, last_checkpoint(job), job.finetune.patience)
    adapter = job.path / "adapter"
    if trainer.is_world_process_zero():
        log = trainer.state.log_history
        write_table(trainable_table(trainer.model), job.path / "trainable.csv")
        write_table(loss_history(log), job.path / "history.csv")
        write_table(answer_history(log), job.path / "eval_history.csv")
        save_adapter(trainer.model, adapter, base_name(job))
        # without the mixed-precision wrapper, which a reloaded model will not have
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
        logits = probe(job, model, trainer.processing_class)
        save_file({"logits": logits}, job.path / "probe.safetensors")
        shutil.rmtree(job.path / "checkpoints")  # done: a rerun starts afresh
    return adapter


def go_on(trainer: CaseTrainer, checkpoint: str | None, patience: int) -> None:
    """Train, from a checkpoint if there is one, unless patience had run out when it was written."""
    if checkpoint and patience:
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        counted = state.stateful_callbacks["EarlyStoppingCallback"]["attributes"]
        if counted["early_stopping_patience_counter"] >= patience:
            trainer.state = state
            trainer._load_best_model()
            return
    trainer.train(resume_from_checkpoint=checkpoint)


PROBES = 4  # validation cases whose next-token logits are compared


def probe(job: Job, model: torch.nn.Module, processor: ProcessorMixin) -> torch.Tensor:
    """Return the logits of the first answer token for a few validation cases, (cases, tokens)."""
    examples = job.examples()
    few = examples[examples["split"] == "val"].head(PROBES)
    pictures = [open_picture(path, processor) for path in few["image"]]
    batch = encode_prompts(processor, pictures, list(few["prompt"])).to(model.device)
    with torch.inference_mode():
        logits = model(**batch, logits_to_keep=1).logits[:, -1]
    return logits.float().cpu().contiguous()


def reload_difference(job: Job) -> float:
    """Load base and adapter afresh and compare with the live model's logits.

    Returns:
        The largest absolute difference: 0 on one machine in float32, a rounding step or two in
        bfloat16, though the parameters are the same.
    """
    where = {"quantise": job.finetune.quantise} | job.source
    tuned = load_tuned(job.backbone, job.size, job.path / "adapter", **where)
    live = load_file(job.path / "probe.safetensors")["logits"]
    return float((probe(job, *tuned) - live).abs().max())


def merge_adapter(job: Job, folder: str | Path) -> float:
    """Write a finished run as one plain model, and check that it says the same.

    LoRA is added to the base's weights and the projector put in the base's place. The folder needs
    neither PEFT nor this package: `AutoModelForImageTextToText` and `transformers serve` read it.

    Args:
        job: A finished run. A 4-bit run is merged into the full base, not the quantised one.
        folder: For the model and its processor; made if missing.

    Returns:
        The largest absolute difference of a logit between the model read back from the folder and
        base plus adapter: rounding, below 1e-4 in float32.

    Raises:
        FileNotFoundError: The run has no adapter yet.
    """
    tuned, processor = load_tuned(job.backbone, job.size, job.path / "adapter", **job.source)
    before, dtype, device = probe(job, tuned, processor), tuned.dtype, tuned.device
    tuned.merge_and_unload().save_pretrained(folder)
    processor.save_pretrained(folder)
    merged = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).to(device).eval()
    after = probe(job, merged, AutoProcessor.from_pretrained(folder))
    return float((after - before).abs().max())


def run_job(job: Job, processes: int = 1, accelerate_config: str | Path = "") -> Path:
    """Run a job here, or on several processes through accelerate; returns the adapter's folder.

    Several processes take one batch together, so the settings mean the same on any number of GPUs.
    A checkpoint that does not fit one GPU is sharded: `accelerate_config=FSDP`, the committed
    settings of `cag_utils/templates/fsdp.yaml`, which also says how to start it by hand.

    Args:
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
    launch("cag_utils.vlm.sft", job.path / "job.json", processes, config=accelerate_config)
    return job.path / "adapter"


if __name__ == "__main__":
    follow_parent()
    train(Job(**read_json(Path(sys.argv[1]))))
