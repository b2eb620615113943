"""Train the key-frame network: augmentation, schedule, best checkpoint, resume after a kill."""

import hashlib
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm

from cag_utils.keyframes import probabilities, save_model
from cag_utils.labels import SIX_CLASSES, f1_scores
from cag_utils.networks import FrameSet, autocast, build_model, pick_device, prepare
from cag_utils.settings import Cnn

CLIP_NORM = 1.0  # not given in the paper; keeps the twin's high learning rate from diverging
EVALUATION_BATCH = 128  # memory only, no influence on the result


def augment(pictures: Tensor, policy: nn.Module) -> Tensor:
    """Apply one random operation of TrivialAugmentWide to each picture on its own.

    The policy shears, shifts, turns (up to 135 degrees) and changes grey levels; it never
    mirrors. A mirrored left coronary looks like a right one, so a flip would teach wrong sides.

    Args:
        pictures: (n, 1, px, px) uint8.
        policy: `v2.TrivialAugmentWide()`; draws from torch's global generator.

    Returns:
        Same shape and type.

    Source:
        CAG-VLM section 3.3; Mueller and Hutter, ICCV 2021.
    """
    return torch.stack([policy(picture) for picture in pictures])


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


class Trainer:
    """One training: model, optimiser, schedule, and everything needed to go on after a kill."""

    def __init__(self, cnn: Cnn, epochs: int, seed: int, n_train: int, device: torch.device):
        torch.manual_seed(seed)
        self.cnn, self.epochs, self.device = cnn, epochs, device
        self.model = build_model(cnn.model, cnn.pretrained).to(device)
        # biases and norms are not shrunk, as timm does it
        groups = [
            {"params": [p for p in self.model.parameters() if (p.ndim > 1) == many], **decay}
            for many, decay in ((True, {}), (False, {"weight_decay": 0.0}))
        ]
        self.optimiser = torch.optim.AdamW(groups, cnn.learning_rate, weight_decay=cnn.weight_decay)
        per_epoch = math.ceil(n_train / cnn.batch_size)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser,
            lambda step: rate_factor(
                step, epochs * per_epoch, cnn.warmup_epochs * per_epoch, cnn.schedule
            ),
        )
        self.policy = v2.TrivialAugmentWide()
        self.history: list[dict] = []

    def train_epoch(self, data: FrameSet) -> float:
        """Pass once over the data in random order; return the mean loss (nats)."""
        self.model.train()
        total = 0.0
        for index in torch.randperm(len(data.targets)).split(self.cnn.batch_size):
            pictures = augment(data.pictures[index], self.policy).to(self.device)
            with autocast(self.device):
                scores = self.model(prepare(pictures, self.cnn.model))
            loss = nn.functional.cross_entropy(
                scores.float(),
                data.targets[index].to(self.device),
                label_smoothing=self.cnn.label_smoothing,
            )
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            self.schedule.step()
            total += loss.item() * len(index)
        return total / len(data.targets)

    def evaluate(self, data: FrameSet) -> dict[str, float]:
        """Return the loss (nats, unsmoothed) and the three F1s on a set, without augmentation."""
        self.model.eval()
        batches = probabilities(
            self.model, self.cnn.model, data.pictures, EVALUATION_BATCH, self.device
        )
        p = np.concatenate(list(batches))
        truth = data.targets.numpy()
        loss = -np.log(np.maximum(p[np.arange(len(p)), truth], 1e-12)).mean()
        table = pd.DataFrame(p, columns=list(SIX_CLASSES))
        return {"loss": float(loss)} | f1_scores([SIX_CLASSES[i] for i in truth], table)

    def state(self) -> dict:
        """Return everything that decides the rest of the training, as plain types and tensors."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},
            "history": self.history,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }

    def restore(self, state: dict) -> None:
        """Go back to a state saved by `state`."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"] | {"lr_lambdas": [None]})
        self.history = state["history"]
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])


def train_cnn(
    data: dict[str, FrameSet],
    cnn: Cnn,
    folder: Path,
    seed: int,
    epochs: int = 0,
    device: torch.device | None = None,
) -> pd.DataFrame:
    """Train, keep the checkpoint with the best six-class F1 on `val`, and be able to resume.

    After every epoch the whole state goes to `last.pt`. If the process dies, calling this again
    with the same settings and data goes on from there with the same losses as if nothing had
    happened; with other settings or data it starts afresh. A finished training removes the file.
    On one machine and with one number of threads the result is a function of the seed.

    Args:
        data: The sets `train` and `val`.
        cnn: Settings of the profile.
        folder: Gets `best.safetensors`, `model.json` and `history.csv`.
        seed: Initial weights, order, augmentation.
        epochs: Passes over the data; 0 takes the profile's.
        device: GPU if None and there is one.

    Returns:
        The history, one row an epoch: epoch, train_loss, val_loss, val_six_class_f1,
        val_laterality_f1, val_three_class_f1, learning_rate, seconds, best.

    Raises:
        ValueError: `epochs` is negative.

    Source:
        CAG-VLM section 3.3: AdamW, cross-entropy, TrivialAugmentWide.
    """
    if epochs < 0:
        raise ValueError(f"epochs must be >= 0 (0: the profile's), got {epochs}")
    epochs, device = epochs or cnn.epochs, device or pick_device()
    last, fingerprint = folder / "last.pt", _fingerprint(data, cnn, seed, epochs)
    with torch.random.fork_rng():  # the caller's generator stays where it was
        trainer = Trainer(cnn, epochs, seed, len(data["train"].targets), device)
        _resume(trainer, last, fingerprint)
        rest = range(len(trainer.history), epochs)
        for epoch in tqdm(rest, desc="epochs", mininterval=30, initial=rest.start, total=epochs):
            _one_epoch(trainer, data, epoch, folder)
            _save_whole(trainer.state() | {"fingerprint": fingerprint}, last)
    history = pd.DataFrame(trainer.history)
    history.to_csv(folder / "history.csv", index=False)
    last.unlink()
    return history


def _one_epoch(trainer: Trainer, data: dict[str, FrameSet], epoch: int, folder: Path) -> None:
    """Train and evaluate once, extend the history, save the model if it is the best so far."""
    start = time.monotonic()
    rate = trainer.schedule.get_last_lr()[0]
    row = {"epoch": epoch + 1, "train_loss": trainer.train_epoch(data["train"])}
    row |= {f"val_{name}": value for name, value in trainer.evaluate(data["val"]).items()}
    row |= {"learning_rate": rate, "seconds": round(time.monotonic() - start, 2)}
    earlier = [r["val_six_class_f1"] for r in trainer.history]
    row["best"] = not earlier or row["val_six_class_f1"] > max(earlier)
    trainer.history.append(row)
    if row["best"]:
        facts = {"model": trainer.cnn.model, "image_px": trainer.cnn.image_px, "epoch": epoch + 1}
        save_model(trainer.model, folder, facts | {"val_six_class_f1": row["val_six_class_f1"]})


def _fingerprint(data: dict[str, FrameSet], cnn: Cnn, seed: int, epochs: int) -> str:
    """Hash of all that decides a training, so that a resume never mixes two of them."""
    digest = hashlib.sha256(f"{cnn.model_dump_json()} {seed} {epochs}".encode())
    for name in ("train", "val"):
        digest.update(data[name].pictures.numpy().tobytes())
        digest.update(data[name].targets.numpy().tobytes())
    return digest.hexdigest()


def _resume(trainer: Trainer, last: Path, fingerprint: str) -> None:
    if not last.is_file():
        return
    state = torch.load(last, map_location=trainer.device, weights_only=True)
    if state.pop("fingerprint") == fingerprint:
        state["torch_rng"] = state["torch_rng"].cpu()
        trainer.restore(state)


def _save_whole(state: dict, path: Path) -> None:
    """Write beside and rename: a kill in the middle leaves the old file, never half a new one."""
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
