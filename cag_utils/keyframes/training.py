"""Train the key-frame network: best checkpoint, one process or many, resume after a kill."""

import hashlib
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cag_utils.keyframes.fitting import fit, join_processes
from cag_utils.keyframes.labels import SIX_CLASSES, f1_scores
from cag_utils.keyframes.network import (
    FrameSet,
    autocast,
    build_model,
    pick_device,
    prepare,
    probabilities,
    save_model,
)
from cag_utils.launch import follow_parent, launch
from cag_utils.profiles import Cnn
from cag_utils.study import read_json, write_json

CHECKPOINT = "training.pt"  # of a training that is under way; no output of the workflow's
EVALUATION_BATCH = 128  # memory only, no influence on the result
NOT_DECISIVE = {"n_workers"}  # settings that change nothing but the speed


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

    After every epoch the whole state, the best weights so far included, goes to `training.pt`. If
    the process dies, calling this again with the same settings and data goes on from there with
    the same losses as if nothing had happened; with other settings or data it starts afresh. The
    results are written at the end. On one machine and with one number of threads the result is a
    function of the seed.

    With more than one GPU, accelerate starts one process for each. They share every batch, and
    their progress is in `folder / "processes.log"`.

    Args:
        data: The sets `train` and `val`.
        cnn: Settings of the profile.
        folder: Gets `best.safetensors`, `model.json` and `history.csv`.
        seed: Initial weights, order, augmentation.
        epochs: Passes over the data; 0 takes the profile's.
        device: GPU if None and there is one.
        processes: How many; 0 takes one a GPU, or one. More than one on a CPU use gloo.
        keep_checkpoint: Leave `training.pt`, so that the next call only writes the results again:
            for a workflow, which removes them when a later step of the same job fails.

    Returns:
        The history, one row an epoch: epoch, train_loss, val_loss, val_six_class_f1,
        val_laterality_f1, val_three_class_f1, learning_rate, seconds, best.

    Raises:
        ValueError: `epochs` or `processes` is negative.
        RuntimeError: One of several processes failed.

    Source:
        CAG-VLM section 3.3: AdamW, cross-entropy, TrivialAugmentWide.
    """
    if epochs < 0 or processes < 0:
        raise ValueError(
            f"epochs and processes must be >= 0 (0: the profile's, and one a GPU), got {epochs} "
            f"and {processes}"
        )
    count = processes or (1 if device else max(1, torch.cuda.device_count()))
    epochs = epochs or cnn.epochs
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
        pd.DataFrame(done.epochs).to_csv(folder / "history.csv", index=False)


def frame_batches(
    data: FrameSet, cnn: Cnn, seed: int, team: Accelerator
) -> Callable[[int], Iterator[tuple[int, tuple]]]:
    """Return what `fit` draws from: every frame once an epoch, in random order, augmented.

    Every batch of the profile's size is split between the processes, so the result does not
    depend on how many there are, except by rounding and by the network's own dropped paths.

    Args:
        data: Training frames.
        cnn: Batch size and loader processes, which live as long as the result.
        seed: Order and augmentation.
        team: This process and its like.
    """
    keys: list[list[tuple[int, int]]] = []
    loader = DataLoader(
        AugmentedFrames(data, seed),
        batch_sampler=keys,
        num_workers=cnn.n_workers,
        collate_fn=_as_drawn,
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


def stream(*words: int) -> int:
    """Return a seed that depends on all words and nothing else, 0 to 2^63 - 1."""
    keys = len(words), *words  # as zeros at the end would not count
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


class AugmentedFrames(Dataset):
    """Frames whose augmentation is a function of seed, epoch and index alone.

    So neither the number of loader workers nor of processes, nor a restart in between, changes
    what a network sees.

    Args:
        data: The frames.
        seed: Of the training.
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


def _as_drawn(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def hand_over(folder: Path, data: Mapping[str, FrameSet], job: Mapping[str, object]) -> None:
    """Write frames and settings for the processes of a training."""
    for name, frames in data.items():
        tensors = {"pictures": frames.pictures.contiguous(), "targets": frames.targets}
        save_file(tensors, folder / f"{name}.safetensors")
    write_json(folder / "job.json", dict(job))


def main(folder: Path) -> None:
    """Be one of several processes, on what `hand_over` wrote: `python -m ... FOLDER`."""
    follow_parent(folder)
    data = {path.stem: FrameSet(**load_file(path)) for path in folder.glob("*.safetensors")}
    job = read_json(folder / "job.json")
    cnn, team = Cnn.model_validate(job["cnn"]), join_processes(pick_device())
    _train(data, cnn, Path(job["folder"]), job["seed"], job["epochs"], team)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
