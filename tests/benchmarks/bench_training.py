"""Our training epoch against one of timm's own training script, as a ratio of images a second.

Run: `python tests/benchmarks/bench_training.py [--n-workers N]`. timm's `train.py` is in no
package, so its epoch is built here of timm's parts in the script's order: `create_dataset` over
PNGs in class folders, `create_loader` with its prefetcher and persistent workers, autocast,
`CrossEntropyLoss`, `dispatch_clip_grad`, `create_optimizer_v2` (AdamW); no EMA, channels last.

Alike on both sides: frames, network, size, batch, AdamW, clipping, loader workers, bfloat16 where
`networks.autocast` takes it. Not alike: timm has no TrivialAugmentWide; its nearest is RandAugment
with one operation of uniform strength, without crops and flips, on PIL pictures, which has to be
RGB (its geometric operations refuse grey). So timm's twin has three plain channels in its first
layer, ours two, one of them made by our high-pass on the way. timm's script reads every PNG anew
in every epoch; we read them once, and that time is counted here as if it came back in every single
epoch. `_small` is the harder bar: PNGs that are already of the network's size, and our reading
left out.

On a CPU the twin at 128 px; with CUDA ConvNeXt-Base at 224 px, batch 128, and the peak memory.
Both sides in turn in one process; the median of the rounds' ratios.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import pandas as pd
import timm
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.utils import dispatch_clip_grad

from cag_utils.keyframes.labels import SIX_CLASSES
from cag_utils.keyframes.network import autocast, build_model, network, pick_device, read_frame_set
from cag_utils.keyframes.training import CLIP_NORM, fit, frame_batches, frame_loss, join_processes
from cag_utils.phantom.stills import still
from cag_utils.profiles import load_profile

RAND_AUGMENT = "rand-m10-n1-p1.0-mstd101-inc1"  # one operation, strength uniform
N_DRAWN, ROUNDS = 12, 5


@dataclass(frozen=True)
class Size:
    """What is trained, and on how many frames."""

    profile: str
    image_px: int
    batch_size: int
    n_frames: int  # a multiple of the batch: timm's loader drops the rest


SIZES = {"cpu": Size("phantom", 128, 32, 192), "cuda": Size("paper", 224, 128, 128 * 32)}


def write_frames(folder: Path, n_frames: int, size_px: int) -> pd.DataFrame:
    """Write phantom stills into class folders, as timm reads them; return our table of them."""
    drawn = [still(seed, 512).image for seed in range(N_DRAWN)]
    rows = []
    for i in range(n_frames):
        label = SIX_CLASSES[i % 6]
        (folder / label).mkdir(parents=True, exist_ok=True)
        picture = cv2.resize(drawn[i % N_DRAWN], (size_px, size_px), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / label / f"{i:05d}.png"), picture)
        rows.append({"png": f"{label}/{i:05d}.png", "label": label})
    return pd.DataFrame(rows)


class TimmScript:
    """One training as timm's script sets it up."""

    def __init__(self, folder: Path, size: Size, cnn, device: torch.device):
        entry, self.device = network(cnn.model), device
        overrides = dict(entry.overrides) | {"in_chans": 3}
        model = timm.create_model(entry.timm_name, num_classes=len(SIX_CLASSES), **overrides)
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.optimiser = create_optimizer_v2(
            self.model, opt="adamw", lr=cnn.learning_rate, weight_decay=cnn.weight_decay
        )
        self.loader = create_loader(
            create_dataset("", root=str(folder), is_training=True),
            input_size=(3, size.image_px, size.image_px),
            batch_size=size.batch_size,
            is_training=True,
            scale=(1.0, 1.0),
            ratio=(1.0, 1.0),
            hflip=0.0,
            color_jitter=0.0,
            auto_augment=RAND_AUGMENT,
            num_workers=cnn.n_workers,
            persistent_workers=cnn.n_workers > 0,
            pin_memory=device.type == "cuda",
            device=device,
        )
        self.loss = torch.nn.CrossEntropyLoss(label_smoothing=cnn.label_smoothing).to(device)

    def train_epoch(self) -> float:
        """Pass once over the frames; return the mean loss (nats)."""
        self.model.train()
        total = torch.zeros((), device=self.device)
        for pictures, targets in self.loader:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
            with autocast(self.device):
                loss = self.loss(self.model(pictures), targets)
            loss.backward()
            dispatch_clip_grad(self.model.parameters(), value=CLIP_NORM, mode="norm")
            self.optimiser.step()
            self.optimiser.zero_grad()
            total += loss.detach()
        return total.item() / len(self.loader)


def timed(call, *arguments) -> tuple[float, object]:
    """Return the seconds on the wall, the GPU's queue included, and the result."""
    start = time.perf_counter()
    result = call(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def one_bar(folder: Path, size: Size, cnn, device: torch.device, file_px: int) -> dict[str, float]:
    """Measure both ways in turn on PNGs of one size; images a second and the ratio."""
    frames = write_frames(folder, size.n_frames, file_px)
    reading, data = timed(read_frame_set, frames, folder, size.image_px)
    team, model = join_processes(device), build_model(cnn.model, False).to(device)
    parts = frame_batches(data, cnn, 0, team), frame_loss(model, cnn, team)
    groups = param_groups_weight_decay(model, cnn.weight_decay)
    optimiser = torch.optim.AdamW(groups, cnn.learning_rate, fused=True)
    n_steps = len(frames) // size.batch_size

    def ours() -> float:
        done = fit(model, *parts, [optimiser], n_steps, accelerator=team)
        return done.epochs[0]["train_loss"]

    script = TimmScript(folder, size, cnn, device)
    if file_px == size.image_px:
        reading = 0.0
    seconds: dict[str, list[float]] = {"ours": [], "timm": []}
    for _ in range(ROUNDS + 1):
        for name, call in (("ours", ours), ("timm", script.train_epoch)):
            taken, loss = timed(call)
            assert 0 < loss < 10, f"{name} does not train: loss {loss}"
            seconds[name].append(taken + reading * (name == "ours"))
    ratios = [t / o for o, t in zip(seconds["ours"][1:], seconds["timm"][1:], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 2),
        "ours": round(len(frames) / statistics.median(seconds["ours"][1:]), 1),
        "timm": round(len(frames) / statistics.median(seconds["timm"][1:]), 1),
    }


def main(n_workers: int | None = None) -> dict[str, float]:
    """Measure on PNGs of 512 px, as the study has them, and on small ones."""
    device = pick_device()
    size = SIZES[device.type]
    cnn = load_profile(size.profile).cnn
    changed = {"image_px": size.image_px, "batch_size": size.batch_size, "pretrained": False}
    workers = cnn.n_workers if n_workers is None else n_workers
    cnn = cnn.model_copy(update=changed | {"n_workers": workers, "average": 0.0})
    with tempfile.TemporaryDirectory() as name:
        whole = one_bar(Path(name) / "whole", size, cnn, device, 512)
        small = one_bar(Path(name) / "small", size, cnn, device, size.image_px)
    found = {
        "training_times_timm_script": whole["ratio"],
        "training_times_timm_script_small": small["ratio"],
        "training_images_per_second": whole["ours"],
        "training_timm_images_per_second": whole["timm"],
        "training_images_per_second_small": small["ours"],
        "training_timm_images_per_second_small": small["timm"],
        "training_n_workers": workers,
    }
    if device.type == "cuda":
        found["training_peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-workers", type=int, help="on both sides; default: the profile's")
    print(json.dumps(main(parser.parse_args().n_workers)))
