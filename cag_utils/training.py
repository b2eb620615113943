"""Train the key-frame network: best checkpoint, one process or many, resume after a kill."""

import hashlib
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from cag_utils.checkpoints import save_model
from cag_utils.networks import FrameSet
from cag_utils.processes import Team, count_processes, join_team, launch, read_job
from cag_utils.profiles import Cnn
from cag_utils.trainer import Trainer

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
