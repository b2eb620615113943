"""Train the key-frame network: best checkpoint, one process or many, resume after a kill."""

import copy
import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from cag_utils.labels import SIX_CLASSES, f1_scores
from cag_utils.network import (
    FrameSet,
    autocast,
    build_model,
    pick_device,
    prepare,
    probabilities,
    save_model,
)
from cag_utils.settings import Cnn
from cag_utils.study import read_json, write_json

SHOWN_LINES = 15  # of a failed process's last words


@dataclass(frozen=True)
class Team:
    """One process among those that train one network.

    Attributes:
        rank: Number of this process, 0 for the one that writes.
        size: How many there are.
        device: What this one computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def own(self, items: list) -> list:
        """This process's share of a list, every `size`-th."""
        return items[self.rank :: self.size]

    def gather(self, item) -> list:
        """Every process's item, by rank; all processes have to call this."""
        return [item] if self.size == 1 else gather_object([item])

    def share(self, model: nn.Module) -> nn.Module:
        """Average the model's gradients over the processes."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def join_team(device: torch.device | None = None) -> Team:
    """Return this process's place: alone, or as accelerate's launcher says.

    Args:
        device: For a single process; GPU if None and there is one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team(0, 1, device or pick_device())
    state = PartialState(cpu=not torch.cuda.is_available())
    return Team(state.process_index, state.num_processes, state.device)


def count_processes() -> int:
    """One a GPU, at least one. CUDA is not initialised by asking."""
    return max(1, torch.cuda.device_count())


def launch(
    module: str, count: int, sets: Mapping[str, FrameSet], job: Mapping[str, object], log: Path
) -> None:
    """Run a module in several processes on frames and settings that are handed over on disk.

    Args:
        module: Run as `python -m MODULE FOLDER`; reads the folder with `read_job`.
        count: Processes, one a GPU; on a machine without, they share the CPU over gloo.
        sets: Frames by name.
        job: JSON-ready settings.
        log: Gets what the processes print, progress bar included, while they run.

    Raises:
        RuntimeError: A process failed; the message ends with its last words.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stem, data in sets.items():
            tensors = {"pictures": data.pictures.contiguous(), "targets": data.targets}
            save_file(tensors, folder / f"{stem}.safetensors")
        write_json(folder / "job.json", dict(job))
        # `--cpu` would silently run one process (facts); without a GPU the module chooses gloo
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
        command += ["--num_processes", str(count), "--num_machines", "1", "--main_process_port"]
        command += ["0", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--module", module, str(folder)]
        with log.open("w", encoding="utf-8") as file:
            out = {"stdout": file, "stderr": file}
            with subprocess.Popen(command, stdin=subprocess.PIPE, **out) as process:
                code = process.wait()  # the pipe stays open for as long as this process lives
    if code != 0:
        raise RuntimeError(f"{module} failed in {count} processes:\n{_last_words(log)}")


def _last_words(log: Path) -> str:
    """The end of the first traceback, or of everything."""
    lines = [x for x in log.read_text(encoding="utf-8").splitlines() if x.strip()]
    ends = [
        i for i, x in enumerate(lines) if re.match(r"(\[rank\d+\]: )?\w*(Error|Exception)\b", x)
    ]
    end = ends[0] + 1 if ends else len(lines)
    return "\n".join(lines[max(0, end - SHOWN_LINES) : end])


def read_job(folder: Path) -> tuple[dict[str, FrameSet], dict]:
    """Read what `launch` handed over, and from now on end when the launching process does.

    Returns:
        The frames by name, and the settings.
    """
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    sets = {path.stem: FrameSet(**load_file(path)) for path in folder.glob("*.safetensors")}
    return sets, read_json(folder / "job.json")


def _end_with_parent(folder: Path) -> None:
    """Wait for the end of the pipe from `launch`, also after a kill, so that no orphan trains on.

    A second training in the same folder would otherwise have a second writer. The frames that
    were handed over go as well: after a kill nobody else removes them.
    """
    os.read(sys.stdin.fileno(), 1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


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

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return (1, px, px) uint8 and the class of frame `key[1]` in epoch `key[0]`."""
        pictures, targets = self.__getitems__([key])
        return pictures[0], targets[0]

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


class BatchLoader:
    """Draws batches, ahead in other processes if there are workers; these live as long as it.

    Args:
        frames: What to draw from.
        n_workers: Loader processes; 0 draws in this one.
        pin: Page-locked memory, for a faster way to a GPU.
    """

    def __init__(self, frames: AugmentedFrames, n_workers: int, pin: bool):
        self._keys: list[list[tuple[int, int]]] = []
        self._loader = DataLoader(
            frames,
            batch_sampler=self._keys,
            num_workers=n_workers,
            collate_fn=_as_drawn,
            pin_memory=pin,
            persistent_workers=n_workers > 0,
            generator=torch.Generator(),  # not the global one, which is the network's
        )

    def epoch(
        self, batches: Sequence[Sequence[int]], epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield augmented batches: ((b, 1, px, px) uint8, (b,) int64).

        Args:
            batches: Indices of each batch.
            epoch: Decides the draws, with the seed of the frames.
        """
        self._keys[:] = [[(epoch, index) for index in batch] for batch in batches]
        return iter(self._loader)


def _as_drawn(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


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


NOT_DECISIVE = {"n_workers"}  # settings that change nothing but the speed


def train_cnn(
    data: dict[str, FrameSet],
    cnn: Cnn,
    folder: Path,
    seed: int,
    epochs: int = 0,
    device: torch.device | None = None,
    processes: int = 0,
) -> pd.DataFrame:
    """Train, keep the checkpoint with the best six-class F1 on `val`, and be able to resume.

    After every epoch the whole state goes to `last.pt`. If the process dies, calling this again
    with the same settings and data goes on from there with the same losses as if nothing had
    happened; with other settings or data it starts afresh. A finished training removes the file.
    On one machine and with one number of threads the result is a function of the seed.

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
    count = processes or (1 if device else count_processes())
    if count > 1:
        job = {"cnn": cnn.model_dump(), "folder": str(folder.resolve()), "seed": seed}
        log = folder / "processes.log"
        launch("cag_utils.training", count, data, job | {"epochs": epochs or cnn.epochs}, log)
    else:
        team = join_team(device)
        gpus = [team.device] if team.device.type == "cuda" else []
        with torch.random.fork_rng(gpus):  # the caller's generator stays where it was
            _train(data, cnn, folder, seed, epochs or cnn.epochs, team)
    return pd.read_csv(folder / "history.csv", float_precision="round_trip")


def _train(
    data: dict[str, FrameSet], cnn: Cnn, folder: Path, seed: int, epochs: int, team: Team
) -> None:
    """One process's part of `train_cnn`."""
    last, fingerprint = folder / "last.pt", _fingerprint(data, cnn, seed, epochs)
    trainer = Trainer(cnn, epochs, seed, len(data["train"].targets), team)
    _resume(trainer, last, fingerprint)
    team.gather(None)  # all have read it before the one that writes may remove it
    bar = tqdm(
        total=epochs, initial=len(trainer.history), desc="epochs", mininterval=30,
        disable=not team.writes,
    )  # fmt: skip
    while len(trainer.history) < epochs and not trainer.is_over():
        row = _one_epoch(trainer, data)
        if team.writes:
            if row["best"]:
                _save_best(trainer, folder)
            _save_whole(trainer.state() | {"fingerprint": fingerprint}, last)
        bar.update()
    bar.close()
    if team.writes:
        pd.DataFrame(trainer.history).to_csv(folder / "history.csv", index=False)
        last.unlink()


def _one_epoch(trainer: Trainer, data: dict[str, FrameSet]) -> dict:
    """Train and evaluate once and extend the history by a row, which is returned."""
    start = time.monotonic()
    rate = trainer.schedule.get_last_lr()[0]
    row = {"epoch": len(trainer.history) + 1, "train_loss": trainer.train_epoch(data["train"])}
    row |= {f"val_{name}": value for name, value in trainer.evaluate(data["val"]).items()}
    row |= {"learning_rate": rate, "seconds": round(time.monotonic() - start, 2)}
    earlier = [r["val_six_class_f1"] for r in trainer.history]
    row["best"] = not earlier or row["val_six_class_f1"] > max(earlier)
    trainer.history.append(row)
    return row


def _save_best(trainer: Trainer, folder: Path) -> None:
    row, cnn = trainer.history[-1], trainer.cnn
    facts = {"model": cnn.model, "image_px": cnn.image_px, "epoch": row["epoch"]}
    facts["val_six_class_f1"] = row["val_six_class_f1"]
    save_model(trainer.best_model, folder, facts)


def _fingerprint(data: dict[str, FrameSet], cnn: Cnn, seed: int, epochs: int) -> str:
    """Hash of all that decides a training, so that a resume never mixes two of them."""
    digest = hashlib.sha256(f"{cnn.model_dump_json(exclude=NOT_DECISIVE)} {seed} {epochs}".encode())
    for name in ("train", "val"):
        digest.update(data[name].pictures.numpy().tobytes())
        digest.update(data[name].targets.numpy().tobytes())
    return digest.hexdigest()


def _resume(trainer: Trainer, last: Path, fingerprint: str) -> None:
    if not last.is_file():
        return
    state = torch.load(last, map_location=trainer.team.device, weights_only=True)
    if state.pop("fingerprint") == fingerprint:
        trainer.restore(state)


def _save_whole(state: dict, path: Path) -> None:
    """Write beside and rename: a kill in the middle leaves the old file, never half a new one."""
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def main(folder: Path) -> None:
    """Be one of several processes: `accelerate launch ... -m cag_utils.training FOLDER`."""
    data, job = read_job(folder)
    cnn = Cnn.model_validate(job["cnn"])
    _train(data, cnn, Path(job["folder"]), job["seed"], job["epochs"], join_team())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
