"""One training of the key-frame network in memory: model, optimiser, schedule, average, state."""

import copy
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cag_utils.augmentation import AugmentedFrames, BatchLoader, epoch_batches, stream
from cag_utils.checkpoints import probabilities
from cag_utils.labels import SIX_CLASSES, f1_scores
from cag_utils.networks import FrameSet, autocast, build_model, prepare
from cag_utils.processes import Team
from cag_utils.profiles import Cnn

CLIP_NORM = 1.0  # not given in the paper; keeps the twin's high learning rate from diverging
EVALUATION_BATCH = 128  # memory only, no influence on the result


def rate_factor(step: int, n_steps: int, n_warmup: float, schedule: str) -> float:
    """Return what the learning rate is multiplied by at a step.

    Args:
        step: 0-based, below `n_steps`.
        n_steps: Steps of the whole training.
        n_warmup: Steps of the linear warm-up, may be 0.
        schedule: `constant`, or `cosine` down to 0 at the end.

    Returns:
        A factor in [0, 1].

    Raises:
        ValueError: The schedule is unknown.
    """
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"schedule must be 'constant' or 'cosine', got {schedule!r}")
    warm = min(1.0, (step + 1) / n_warmup) if n_warmup > 0 else 1.0
    if schedule == "constant":
        return warm
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / n_steps)))


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a model that follows it as an exponential moving average.

    Args:
        model: On its device.
        decay: Share that is kept at each `update_parameters`, in [0, 1); smaller over the first
            steps, so that the random start is soon forgotten.
    """

    def blend(kept: list[torch.Tensor], new: list[torch.Tensor], count: torch.Tensor) -> None:
        n = int(count)  # all weights in one call: on a GPU this waits, once a step
        get_ema_multi_avg_fn(min(decay, (n + 1) / (n + 11)))(kept, new, count)

    return AveragedModel(model, multi_avg_fn=blend)


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


class Trainer:
    """One training: model, optimiser, schedule, and everything needed to go on after a kill.

    Args:
        cnn: Settings.
        epochs: Of the whole training.
        seed: Initial weights; order and augmentation of every epoch.
        n_train: Training frames.
        team: This process and its like.
    """

    def __init__(self, cnn: Cnn, epochs: int, seed: int, n_train: int, team: Team):
        torch.manual_seed(seed)
        self.cnn, self.seed, self.team = cnn, seed, team
        self.model = build_model(cnn.model, cnn.pretrained).to(team.device)
        self.shared = team.share(self.model)
        keeps = cnn.start_share and cnn.pretrained  # random weights are nothing to go back to
        self.start = copy.deepcopy(self.model.state_dict()) if keeps else None
        self.average = moving_average(self.model, cnn.average) if cnn.average else None
        # biases and norms are not shrunk, as timm does it
        groups = [
            {"params": [p for p in self.model.parameters() if (p.ndim > 1) == many], **decay}
            for many, decay in ((True, {}), (False, {"weight_decay": 0.0}))
        ]
        self.optimiser = torch.optim.AdamW(
            groups, cnn.learning_rate, weight_decay=cnn.weight_decay, fused=True
        )
        per_epoch = math.ceil(n_train / cnn.batch_size)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser,
            lambda step: rate_factor(
                step, epochs * per_epoch, cnn.warmup_epochs * per_epoch, cnn.schedule
            ),
        )
        self.history: list[dict] = []
        self._source: FrameSet | None = None
        self._batches: BatchLoader | None = None

    @property
    def best_model(self) -> nn.Module:
        """What is evaluated and saved: the moving average if there is one, mixed with the start."""
        model = self.average.module if self.average else self.model
        return mix(self.start, model, self.cnn.start_share) if self.start else model

    def train_epoch(self, data: FrameSet) -> float:
        """Pass once over the data in random order; return the mean loss (nats).

        Every batch of the profile's size is split between the processes, so the result does not
        depend on how many there are, except by rounding and by the network's own dropped paths.
        """
        epoch, team = len(self.history), self.team
        torch.manual_seed(stream(self.seed, epoch, team.rank, 1))  # dropped paths
        self.shared.train()
        batches = epoch_batches(len(data.targets), self.cnn.batch_size, self.seed, epoch)
        own = [team.own(batch) or batch[:1] for batch in batches]  # none left: one, without weight
        loaded = self._loader(data).epoch(own, epoch)
        total = torch.zeros((), device=team.device)
        for batch, (pictures, targets) in zip(batches, loaded, strict=True):
            weight = bool(team.own(batch)) / len(batch)
            total += self._step(pictures, targets, weight) * len(batch)
        return sum(team.gather(total.item())) / len(data.targets)

    def _loader(self, data: FrameSet) -> BatchLoader:
        """Return the set's loader, made once: to start workers for every epoch takes its time."""
        if self._source is not data:
            pin = self.team.device.type == "cuda"
            frames = AugmentedFrames(data, self.seed)
            self._source, self._batches = data, BatchLoader(frames, self.cnn.n_workers, pin)
        return self._batches

    def _step(self, pictures: torch.Tensor, targets: torch.Tensor, weight: float) -> torch.Tensor:
        """One step of the optimiser; return this process's part of the batch's mean loss."""
        pictures, targets = (x.to(self.team.device, non_blocking=True) for x in (pictures, targets))
        with autocast(self.team.device):
            scores = self.shared(prepare(pictures, self.cnn.model))
        loss = weight * nn.functional.cross_entropy(
            scores.float(), targets, label_smoothing=self.cnn.label_smoothing, reduction="sum"
        )
        (loss * self.team.size).backward()  # gradients are averaged over the processes
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.model)
        return loss.detach()

    def evaluate(self, data: FrameSet) -> dict[str, float]:
        """Return the loss (nats, unsmoothed) and the three F1s on a set, without augmentation."""
        model, team = self.best_model.eval(), self.team
        own = team.own(list(range(len(data.targets))))
        batches = probabilities(
            model, self.cnn.model, data.pictures[own], EVALUATION_BATCH, team.device
        )
        found = np.concatenate([np.empty((0, len(SIX_CLASSES))), *batches])
        p = np.empty((len(data.targets), len(SIX_CLASSES)))
        for rows, values in team.gather((own, found)):
            p[rows] = values
        truth = data.targets.numpy()
        loss = -np.log(np.maximum(p[np.arange(len(p)), truth], 1e-12)).mean()
        table = pd.DataFrame(p, columns=list(SIX_CLASSES))
        return {"loss": float(loss)} | f1_scores([SIX_CLASSES[i] for i in truth], table)

    def is_over(self) -> bool:
        """Whether the validation F1 has not risen for `patience` epochs; never if that is 0."""
        since = [row["best"] for row in self.history][::-1]
        return (
            bool(self.cnn.patience and since)
            and (since.index(True) if True in since else len(since)) >= self.cnn.patience
        )

    def state(self) -> dict:
        """Return everything that decides the rest of the training, as plain types and tensors."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "optimiser": self.optimiser.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},
            "history": self.history,
        }

    def restore(self, state: dict) -> None:
        """Go back to a state saved by `state`."""
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"] | {"lr_lambdas": [None]})
        self.history = state["history"]
