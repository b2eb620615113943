"""One training loop, `fit`, and the key-frame network on it: best epoch, many processes, resume.

Who trains says what a batch is and what it costs; the loop is the same for the key-frame network,
for the makers of the shipped weights and for any number of processes.
"""

import copy
import hashlib
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm
from transformers import get_scheduler

from cag_utils.keyframes.labels import MERGES, SIX_CLASSES, f1_scores
from cag_utils.keyframes.network import (
    FrameSet,
    autocast,
    build_model,
    network,
    pick_device,
    prepare,
    probabilities,
    save_model,
)
from cag_utils.profiles import Cnn
from cag_utils.shipped import check_phantom
from cag_utils.study import read_json, write_json
from cag_utils.tables import write_table
from cag_utils.workflow import follow_parent, launch

CHECKPOINT = "training.pt"  # of a training that is under way; no output of the workflow's
EVALUATION_BATCH = 128  # memory only, no influence on the result
NOT_DECISIVE = {"n_workers"}  # settings that change nothing but the speed
CLIP_NORM = 1.0  # not given in the paper; keeps the twins' high learning rates from diverging
Losses = Mapping[str, Tensor]


def train_cnn(
    data: dict[str, FrameSet],
    cnn: Cnn,
    folder: Path,
    seed: int,
    epochs: int = 0,
    device: torch.device | None = None,
    processes: int = 0,
    keep_checkpoint: bool = False,
) -> pd.DataFrame:
    """Train, keep the checkpoint with the best six-class F1 on `val`, and be able to resume.

    After every epoch the whole state goes to `training.pt`. If the process dies, the same call goes
    on from there with the same losses; with other settings or data it starts afresh. On one machine
    and with one number of threads the result is a function of the seed. Several processes share
    every batch; what they print is in `folder / "processes.log"`.

    Args:
        data: The sets `train` and `val`.
        folder: Gets `best.safetensors`, `model.json` and `history.csv`, at the end.
        epochs: Passes over the data; 0 takes the profile's. Where that is 0 too, nothing is learnt:
            the shipped network is kept as it is, and the history has one row, epoch 0.
        device: GPU if None and there is one.
        processes: How many; 0 takes one a GPU, or one. More than one on a CPU use gloo.
        keep_checkpoint: Leave `training.pt`, so that the next call only writes the results again:
            for a workflow, which removes them when a later step of the same job fails.

    Returns:
        The history, one row an epoch: epoch, train_loss, val_loss, val_six_class_f1,
        val_laterality_f1, val_three_class_f1, learning_rate, seconds, best.

    Raises:
        ValueError: `epochs` or `processes` is negative, or both the argument and the profile say 0
            and no network of this name is shipped.
        RuntimeError: One of several processes failed.

    Source:
        CAG-VLM section 3.3: AdamW, cross-entropy, TrivialAugmentWide.
    """
    if epochs < 0 or processes < 0:
        raise ValueError(f"epochs and processes must be >= 0, got {epochs} and {processes}")
    count = processes or (1 if device else max(1, torch.cuda.device_count()))
    epochs = epochs or cnn.epochs
    if not epochs:
        return _keep_shipped(cnn.model, folder)
    if count > 1:
        job = {"cnn": cnn.model_dump(), "folder": str(folder.resolve()), "seed": seed}
        with tempfile.TemporaryDirectory() as name:
            hand_over(Path(name), data, job | {"epochs": epochs})
            log = folder / "processes.log"
            launch("cag_utils.keyframes.training", Path(name), count, log)
    else:
        _train(data, cnn, folder, seed, epochs, join_processes(device or pick_device()))
    if not keep_checkpoint:
        (folder / CHECKPOINT).unlink()
    return pd.read_csv(folder / "history.csv", float_precision="round_trip")


def _keep_shipped(name: str, folder: Path) -> pd.DataFrame:
    if (weights := network(name).weights) is None:
        raise ValueError(f"no network {name!r} is shipped: cnn.epochs must be above 0")
    for file in ("best.safetensors", "model.json"):
        shutil.copy(check_phantom(weights) / file, folder)
    nothing = dict.fromkeys(["train_loss", "val_loss", *(f"val_{name}" for name in MERGES)], np.nan)
    history = pd.DataFrame([{"epoch": 0} | nothing | {"seconds": 0.0, "best": True}])
    write_table(history, folder / "history.csv")
    return history


def hand_over(folder: Path, data: Mapping[str, FrameSet], job: Mapping[str, object]) -> None:
    """Write frames and settings for the processes of a training; `main` reads them."""
    for name, frames in data.items():
        tensors = {"pictures": frames.pictures.contiguous(), "targets": frames.targets}
        save_file(tensors, folder / f"{name}.safetensors")
    write_json(folder / "job.json", dict(job))


def _train(
    data: dict[str, FrameSet], cnn: Cnn, folder: Path, seed: int, epochs: int, team: Accelerator
) -> None:
    """One process's part of `train_cnn`."""
    gpus = [team.device] if team.device.type == "cuda" else []
    with torch.random.fork_rng(gpus):  # the caller's generator stays where it was
        torch.manual_seed(seed)
        model = build_model(cnn.model, cnn.pretrained).to(team.device)
        groups = param_groups_weight_decay(model, cnn.weight_decay)
        optimiser = torch.optim.AdamW(groups, cnn.learning_rate, fused=True)
        steps = math.ceil(len(data["train"].targets) / cnn.batch_size)
        done = fit(
            model,
            frame_batches(data["train"], cnn, seed, team),
            frame_loss(team.prepare(model), cnn, team),
            [optimiser],
            steps,
            epochs,
            warmup=round(cnn.warmup_epochs * steps),
            schedule=cnn.schedule,
            average=cnn.average,
            start_share=cnn.start_share * cnn.pretrained,  # random weights: nothing to go back to
            evaluate=lambda kept: _evaluate(kept, data["val"], cnn, team),
            best_by="val_six_class_f1",
            patience=cnn.patience,
            checkpoint=folder / CHECKPOINT,
            key=_fingerprint(data, cnn, seed),
            name="epochs",
            accelerator=team,
        )
    if team.is_main_process:
        best = [row for row in done.epochs if row["best"]][-1]
        model.load_state_dict(done.best)
        facts = {"model": cnn.model, "image_px": cnn.image_px, "epoch": best["epoch"]}
        save_model(model, folder, facts | {"val_six_class_f1": best["val_six_class_f1"]})
        write_table(pd.DataFrame(done.epochs), folder / "history.csv")


def frame_batches(
    data: FrameSet, cnn: Cnn, seed: int, team: Accelerator
) -> Callable[[int], Iterator[tuple[int, tuple]]]:
    """Return what `fit` draws from: every frame once an epoch, in random order, augmented.

    Every batch of the profile's size is split between the processes of `team`, so the result does
    not depend on how many there are, except by rounding and by the network's own dropped paths.
    The loader's workers live as long as what is returned.
    """
    keys: list[list[tuple[int, int]]] = []
    loader = DataLoader(
        AugmentedFrames(data, seed),
        batch_sampler=keys,
        num_workers=cnn.n_workers,
        collate_fn=tuple,  # a batch is made at once
        pin_memory=team.device.type == "cuda",
        persistent_workers=cnn.n_workers > 0,
        generator=torch.Generator(),  # not the global one, which is the network's
    )

    def batches(epoch: int) -> Iterator[tuple[int, tuple]]:
        torch.manual_seed(stream(seed, epoch, team.process_index, 1))  # dropped paths
        whole = epoch_batches(len(data.targets), cnn.batch_size, seed, epoch)
        own = [batch[team.process_index :: team.num_processes] for batch in whole]
        # none left for this process: one frame, without weight
        drawn = [part or batch[:1] for part, batch in zip(own, whole, strict=True)]
        keys[:] = [[(epoch, index) for index in batch] for batch in drawn]
        for batch, part, (pictures, targets) in zip(whole, own, loader, strict=True):
            yield len(batch), (pictures, targets, bool(part) / len(batch))

    return batches


def frame_loss(model: nn.Module, cnn: Cnn, team: Accelerator) -> Callable[..., dict[str, Tensor]]:
    """Return what `fit` minimises: this process's part of a batch's mean cross-entropy (nats)."""

    def loss(pictures: Tensor, targets: Tensor, weight: float) -> dict[str, Tensor]:
        pictures, targets = (x.to(team.device, non_blocking=True) for x in (pictures, targets))
        with autocast(team.device):
            scores = model(prepare(pictures, cnn.model))
        smoothing = {"label_smoothing": cnn.label_smoothing, "reduction": "sum"}
        return {"loss": weight * nn.functional.cross_entropy(scores.float(), targets, **smoothing)}

    return loss


def _evaluate(model: nn.Module, data: FrameSet, cnn: Cnn, team: Accelerator) -> dict[str, float]:
    """The loss (nats, unsmoothed) and the three F1s on a set, without augmentation."""
    own = np.arange(len(data.targets))[team.process_index :: team.num_processes]
    batches = probabilities(model, cnn.model, data.pictures[own], EVALUATION_BATCH, team.device)
    found = [(own, np.concatenate([np.empty((0, len(SIX_CLASSES))), *batches]))]
    p = np.empty((len(data.targets), len(SIX_CLASSES)))
    for rows, values in gather_object(found) if team.num_processes > 1 else found:
        p[rows] = values
    truth = data.targets.numpy()
    loss = -np.log(np.maximum(p[np.arange(len(p)), truth], 1e-12)).mean()
    table = pd.DataFrame(p, columns=list(SIX_CLASSES))
    scores = {"loss": float(loss)} | f1_scores([SIX_CLASSES[i] for i in truth], table)
    return {f"val_{name}": value for name, value in scores.items()}


def _fingerprint(data: dict[str, FrameSet], cnn: Cnn, seed: int) -> str:
    """Hash of all that decides a training, so that a resume never mixes two of them."""
    digest = hashlib.sha256(f"{cnn.model_dump_json(exclude=NOT_DECISIVE)} {seed}".encode())
    for name in ("train", "val"):
        digest.update(data[name].pictures.numpy().tobytes())
        digest.update(data[name].targets.numpy().tobytes())
    return digest.hexdigest()


def stream(*words: int) -> int:
    """Return a seed that depends on all words and nothing else, 0 to 2^63 - 1."""
    keys = len(words), *words  # as zeros at the end would not count
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


class AugmentedFrames(Dataset):
    """Frames whose augmentation is a function of seed, epoch and index alone.

    So neither loader workers nor processes nor a restart change what a network sees. A frame is
    sheared, shifted, turned (up to 135 degrees) or its grey levels change; it is never mirrored: a
    mirrored left coronary looks like a right one.

    Source:
        CAG-VLM section 3.3; Mueller and Hutter, ICCV 2021.
    """

    def __init__(self, data: FrameSet, seed: int):
        self.data, self.seed, self.policy = data, seed, v2.TrivialAugmentWide()

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return (b, 1, px, px) uint8 and (b,) int64; the global generator stays as it was."""
        before = torch.get_rng_state()
        try:
            pictures = torch.stack([self._draw(epoch, index) for epoch, index in keys])
        finally:
            torch.set_rng_state(before)
        return pictures, self.data.targets[[index for _, index in keys]]

    def _draw(self, epoch: int, index: int) -> Tensor:
        # not torch.manual_seed: it seeds the GPUs' generators too, and takes longer than the change
        torch.default_generator.manual_seed(stream(self.seed, epoch, index))
        return self.policy(self.data.pictures[index])


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return every index below `n` once, shuffled, in batches; the last one may be smaller."""
    generator = torch.Generator().manual_seed(stream(seed, epoch))
    return [part.tolist() for part in torch.randperm(n, generator=generator).split(batch_size)]


@dataclass(frozen=True)
class Fitted:
    """What a training leaves.

    `epochs` has one row each: epoch, train_loss, what `evaluate` found, learning_rate (its first),
    seconds, best.
    """

    model: nn.Module  # what is kept, in evaluation mode: the average if any, mixed with the start
    steps: list[dict]  # one row a step of this process: step, and each part of its loss
    epochs: list[dict]
    best: dict[str, Tensor] | None  # weights of the best epoch; None without `evaluate`


def join_processes(device: torch.device) -> Accelerator:
    """Return this process's place: alone on a device, or as accelerate's launcher says."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        # as transformers' Trainer does: what an earlier training here computed on is forgotten
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device.type == "cpu")


def fit(
    model: nn.Module,
    batches: Callable[[int], Iterable[tuple[int, tuple]]],
    loss: Callable[..., Losses],
    optimisers: Sequence[torch.optim.Optimizer],
    steps: int,
    epochs: int = 1,
    *,
    warmup: int | None = None,
    schedule: str = "cosine",
    average: float = 0.0,
    start_share: float = 0.0,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    best_by: str = "",
    patience: int = 0,
    checkpoint: Path | None = None,
    key: str = "",
    name: str = "steps",
    accelerator: Accelerator | None = None,
) -> Fitted:
    """Train a network; go on after a kill as if nothing had happened.

    Args:
        model: On its device; trained in place, its gradients clipped to `CLIP_NORM`.
        batches: Number of the epoch, from 0, to its batches: (items, arguments of `loss`), drawn
            one by one; items weigh a step in the epoch's mean.
        loss: Named parts of a batch's loss, minimised in sum, also over several processes.
        optimisers: Each with its peak learning rates.
        steps: Of an epoch.
        warmup: Steps over which the rate rises; None takes 100, at most a tenth of all.
        schedule: One of transformers' `SchedulerType`, e.g. `cosine`.
        average: Decay of a moving average of the weights, in [0, 1); 0 for none.
        start_share: Of the weights before training in what is kept, 0 to 1 (see `mix`).
        evaluate: Called after every epoch with what would be kept, in evaluation mode.
        best_by: Which of its figures, higher is better, decides the best epoch.
        patience: Epochs without a better one before training ends; 0 for never.
        checkpoint: File that holds, after every epoch, all that decides the rest. It stays:
            whoever trains removes it once the results are safe. None keeps none.
        key: Of all that decides the result; a file with another one is not resumed.
        accelerator: From `join_processes`; alone on the model's device if None.

    Raises:
        ValueError: The schedule is unknown.
    """
    device = next(model.parameters()).device
    accelerator = accelerator or join_processes(device)
    n_warmup = min(100, steps * epochs // 10) if warmup is None else warmup
    run = _Run(model, optimisers, steps * epochs, n_warmup, schedule, average, start_share)
    run.restore(checkpoint, key := f"{key} {steps} {epochs}", device)
    accelerator.wait_for_everyone()  # all have read it before the one that writes may change it
    done = len(run.epochs) * steps
    shown = {"desc": name, "mininterval": 30, "disable": not accelerator.is_main_process}
    with tqdm(total=steps * epochs, initial=done, **shown) as bar:
        while len(run.epochs) < epochs and not run.is_over(patience):
            run.epoch(batches, loss, accelerator, bar.update)
            run.judge(evaluate, best_by)
            if checkpoint and accelerator.is_main_process:
                run.save(checkpoint, key)
    return Fitted(run.kept().eval(), run.steps, run.epochs, run.best)


class _Run:
    """The state of one training."""

    def __init__(self, model, optimisers, n_steps, n_warmup, schedule, average, start_share):
        self.model, self.optimisers = model, optimisers
        kind = {"constant": "constant_with_warmup"}.get(schedule, schedule)
        plan = {"num_warmup_steps": n_warmup, "num_training_steps": n_steps}
        self.schedules = [get_scheduler(kind, optimiser, **plan) for optimiser in optimisers]
        # a step weighs at least 1 / (n + 10), so that the start is soon forgotten
        warmup = {"use_warmup": True, "warmup_gamma": 10.0, "warmup_power": 1.0}
        self.average = ModelEmaV3(model, average, **warmup) if average else None
        self.start_share = start_share
        self.start = copy.deepcopy(model.state_dict()) if start_share else None
        self.steps, self.epochs, self.best = [], [], None

    def kept(self) -> nn.Module:
        """What is evaluated and kept: the moving average if any, mixed with the start if asked."""
        model = self.average.module if self.average else self.model
        return mix(self.start, model, self.start_share) if self.start else model

    def epoch(self, batches, loss, accelerator: Accelerator, tick: Callable[[], object]) -> None:
        """Pass over an epoch's batches; begin its row."""
        began, rate = time.monotonic(), self.schedules[0].get_last_lr()[0]
        number, rows, weights = len(self.epochs), [], []
        self.model.train()
        for items, arguments in batches(number):
            rows.append(self.step(loss(*arguments), accelerator))
            weights.append(items)
            tick()
        total = sum(w * sum(row.values()) for w, row in zip(weights, rows, strict=True))
        total = sum(gather_object([float(total)])) if accelerator.num_processes > 1 else total
        first = len(self.steps)
        found = ({k: float(v) for k, v in row.items()} for row in rows)  # a GPU waits here, once
        self.steps += [{"step": first + i} | row for i, row in enumerate(found)]
        row = {"epoch": number + 1, "train_loss": float(total) / sum(weights)}
        self.epochs.append(row | {"learning_rate": rate, "began": began})

    def step(self, losses: Losses, accelerator: Accelerator) -> dict[str, Tensor]:
        """One step of the optimisers."""
        # DistributedDataParallel averages gradients over the processes; wanted is their sum
        accelerator.backward(sum(losses.values()) * accelerator.num_processes)
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        for optimiser, schedule in zip(self.optimisers, self.schedules, strict=True):
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            schedule.step()
        if self.average:
            self.average.update(self.model, self.schedules[0].last_epoch)
        return {name: value.detach() for name, value in losses.items()}

    def judge(self, evaluate, best_by: str) -> None:
        """Evaluate what would be kept, complete the epoch's row, hold the best weights."""
        row = self.epochs[-1]
        rate, began = row.pop("learning_rate"), row.pop("began")
        kept = self.kept().eval()
        row |= evaluate(kept) if evaluate else {}
        row |= {"learning_rate": rate, "seconds": round(time.monotonic() - began, 2)}
        if evaluate:
            row["best"] = all(row[best_by] > earlier[best_by] for earlier in self.epochs[:-1])
            if row["best"]:
                self.best = {k: v.detach().cpu().clone() for k, v in kept.state_dict().items()}

    def is_over(self, patience: int) -> bool:
        """Whether the last `patience` epochs were all no better than one before."""
        recent = self.epochs[-patience:] if patience else []
        return 0 < patience == len(recent) and not any(row["best"] for row in recent)

    def parts(self) -> list:
        """All that has a state of its own."""
        average = [self.average] if self.average else []
        return [self.model, *average, *self.optimisers, *self.schedules]

    def save(self, path: Path, key: str) -> None:
        """Write beside and rename: a kill in the middle leaves the old file whole."""
        state = {"key": key, "epochs": self.epochs, "best": self.best}
        state |= {"parts": [part.state_dict() for part in self.parts()]}
        state |= {"torch_rng": torch.get_rng_state()}
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)

    def restore(self, path: Path | None, key: str, device: torch.device) -> None:
        """Go back to the last whole epoch, if there is one of this training."""
        if path is None or not path.is_file():
            return
        state = torch.load(path, map_location=device, weights_only=True)
        if state["key"] != key:
            return
        for part, saved in zip(self.parts(), state["parts"], strict=True):
            part.load_state_dict(saved)
        self.epochs, self.best = state["epochs"], state["best"]
        torch.set_rng_state(state["torch_rng"].cpu())


def mix(start: Mapping[str, Tensor], model: nn.Module, share: float) -> nn.Module:
    """Return a copy of a model whose every weight lies between its start and itself.

    A fine-tuned network forgets part of what it started with; halfway back it often knows both.
    `share` is that of the start, 0 to 1.

    Source:
        Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT); it recommends 0.5.
    """
    mixed = copy.deepcopy(model)
    own = mixed.state_dict()
    floats = {k: v for k, v in own.items() if v.is_floating_point()}
    mixed.load_state_dict(own | {k: start[k].lerp(v, 1 - share) for k, v in floats.items()})
    return mixed


def main(folder: Path) -> None:
    """Be one of several processes, on what `hand_over` wrote."""
    follow_parent(folder)
    data = {path.stem: FrameSet(**load_file(path)) for path in folder.glob("*.safetensors")}
    job = read_json(folder / "job.json")
    cnn, team = Cnn.model_validate(job["cnn"]), join_processes(pick_device())
    _train(data, cnn, Path(job["folder"]), job["seed"], job["epochs"], team)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
