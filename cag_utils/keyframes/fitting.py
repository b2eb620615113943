"""One training loop for the study's small networks: schedule, average, best epoch, resume.

Who trains says what a batch is and what it costs; the loop is the same for the key-frame network,
for the makers of the shipped weights and for any number of processes.
"""

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_scheduler

CLIP_NORM = 1.0  # not given in the paper; keeps the twins' high learning rates from diverging
Losses = Mapping[str, Tensor]


@dataclass(frozen=True)
class Fitted:
    """What a training leaves.

    Attributes:
        model: What is kept, in evaluation mode: the moving average if any, mixed with the start.
        steps: One row a step of this process: step, and each part of its loss.
        epochs: One row an epoch: epoch, train_loss, what `evaluate` found, learning_rate (its
            first), seconds, best.
        best: Weights of the best epoch; None without `evaluate`.
    """

    model: nn.Module
    steps: list[dict]
    epochs: list[dict]
    best: dict[str, Tensor] | None


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

    After every epoch all that decides the rest, best weights included, goes to one file, written
    beside and renamed. The file stays: whoever trains removes it once the results are safe.

    Args:
        model: On its device; trained in place, its gradients clipped to `CLIP_NORM`.
        batches: Number of the epoch, from 0, to its batches: (items, arguments of `loss`); items
            weigh a step in the epoch's mean. Drawn one by one, between the steps.
        loss: Named parts of a batch's loss; their sum is what is minimised. Of several processes
            each returns its own part: gradients and losses are summed over them.
        optimisers: Each with its peak learning rates.
        steps: Of an epoch.
        epochs: Of the whole training.
        warmup: Steps over which the rate rises; None takes 100, at most a tenth of all.
        schedule: `constant`, or another of transformers' `SchedulerType`, e.g. `cosine`.
        average: Decay of a moving average of the weights, in [0, 1); smaller over the first steps,
            so that the start is soon forgotten. 0 for none.
        start_share: Of the weights before training in what is kept, 0 to 1 (see `mix`).
        evaluate: Called after every epoch with what would be kept, in evaluation mode.
        best_by: Which of its figures, higher is better, decides the best epoch.
        patience: Epochs without a better one before training ends; 0 for never.
        checkpoint: The file; None keeps none.
        key: Of all that decides the result; a file with another one is not resumed.
        name: Of the progress bar.
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
    shown = accelerator.is_main_process
    with tqdm(
        total=steps * epochs, initial=done, desc=name, mininterval=30, disable=not shown
    ) as bar:
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
        # a step's weight of at least 1 / (n + 10), so that the start is soon forgotten
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

    def save(self, path: Path, key: str) -> None:
        """Write beside and rename: a kill in the middle leaves the old file whole."""
        parts = {"model": self.model, "average": self.average}
        state = {name: part.state_dict() for name, part in parts.items() if part}
        state["optimisers"] = [optimiser.state_dict() for optimiser in self.optimisers]
        state["schedules"] = [schedule.state_dict() for schedule in self.schedules]
        state |= {"epochs": self.epochs, "best": self.best}
        state |= {"key": key, "torch_rng": torch.get_rng_state()}
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
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        self.epochs, self.best = state["epochs"], state["best"]
        torch.set_rng_state(state["torch_rng"].cpu())


def mix(start: Mapping[str, torch.Tensor], model: nn.Module, share: float) -> nn.Module:
    """Return a copy of a model whose every weight lies between its start and itself.

    A fine-tuned network forgets part of what it started with; halfway back it often knows both.

    Args:
        start: Weights before the training.
        model: The trained model; not changed.
        share: Of the start, 0 to 1.

    Source:
        Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT); it recommends 0.5.
    """
    mixed = copy.deepcopy(model)
    own = mixed.state_dict()
    floats = {k: v for k, v in own.items() if v.is_floating_point()}
    mixed.load_state_dict(own | {k: start[k].lerp(v, 1 - share) for k, v in floats.items()})
    return mixed
