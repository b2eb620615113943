"""The key-frame and laterality network at work: load it, predict stills. Training: training.py."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cag_utils.labels import LATERALITY, SIX_CLASSES, decide
from cag_utils.networks import autocast, build_model, pick_device, prepare, read_pictures
from cag_utils.study import read_json, root, write_json

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
DEFAULT_MODEL = "outputs/phantom/01_train_cnn/six_class"


@torch.inference_mode()
def probabilities(
    model: nn.Module, name: str, pictures: Tensor, batch_size: int, device: torch.device
) -> Iterator[np.ndarray]:
    """Yield the six class probabilities, batch by batch.

    Args:
        model: On `device`, in evaluation mode.
        name: Its registry name.
        pictures: (n, 1, px, px) uint8.
        batch_size: Pictures at a time.
        device: Where the model is.

    Yields:
        (b, 6) float64, rows adding up to 1.
    """
    for batch in pictures.split(batch_size):
        with autocast(device):
            scores = model(prepare(batch.to(device), name))
        yield scores.double().softmax(1).cpu().numpy()


def save_model(model: nn.Module, folder: Path, facts: Mapping[str, object]) -> None:
    """Write `best.safetensors` and `model.json` (at least `model` and `image_px`)."""
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "best.safetensors")
    write_json(folder / "model.json", {**facts, "classes": list(SIX_CLASSES)})


def load_model(folder: Path, device: torch.device) -> tuple[nn.Module, dict]:
    """Load a trained network in evaluation mode.

    Args:
        folder: Holds `best.safetensors` and `model.json`, as notebook 01 writes them.
        device: Where to put it.

    Returns:
        The model and the content of `model.json`.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: The classes are not this study's six, in this order.
    """
    folder = Path(folder)
    for name in ("model.json", "best.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; run notebooks/01_train_cnn first")
    facts = read_json(folder / "model.json")
    if facts["classes"] != list(SIX_CLASSES):
        raise ValueError(f"{folder} predicts {facts['classes']}, the study needs {SIX_CLASSES}")
    model = build_model(facts["model"], pretrained=False)
    model.load_state_dict(load_file(folder / "best.safetensors"))
    return model.to(device).eval(), facts


def predict_frames(
    model_dir: Path, png_paths: Sequence[Path], batch_size: int = 64
) -> pd.DataFrame:
    """Say which side each still shows, how good it is, and how sure the network is.

    Args:
        model_dir: Folder of a trained network.
        png_paths: PNG or JPEG stills; only one batch is in memory at a time.
        batch_size: Stills at a time.

    Returns:
        One row a still, in order: `p_<class>` for the six classes; `laterality` (LCA or RCA),
        the side with the larger sum of its three probabilities; `quality` (better, bad or
        other), the likeliest of that side; `confidence`, the probability of that pair.

    Raises:
        FileNotFoundError: The model is missing.
        ValueError: A still is missing or is no picture.
    """
    device = pick_device()
    model, facts = load_model(model_dir, device)
    rows = [np.empty((0, len(SIX_CLASSES)))]
    for i in range(0, len(png_paths), batch_size):
        pictures = read_pictures(png_paths[i : i + batch_size], facts["image_px"])
        rows += probabilities(model, facts["model"], pictures, batch_size, device)
    return describe(pd.DataFrame(np.concatenate(rows), columns=list(SIX_CLASSES)))


def describe(table: pd.DataFrame) -> pd.DataFrame:
    """Add laterality, quality and confidence to six probabilities.

    Args:
        table: (n, 6), columns SIX_CLASSES.

    Returns:
        The table of `predict_frames`.
    """
    side = decide(table, LATERALITY)
    own = table.where(pd.DataFrame({c: side == LATERALITY[c] for c in SIX_CLASSES}), -1.0)
    best = own.to_numpy().argmax(axis=1)
    out = table.add_prefix("p_")
    out["laterality"] = side
    out["quality"] = [SIX_CLASSES[i].split("_")[1] for i in best]
    out["confidence"] = own.to_numpy()[np.arange(len(own)), best]
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict a folder of stills: `python -m cag_utils.keyframes predict FOLDER --out CSV`."""
    parser = argparse.ArgumentParser(prog="python -m cag_utils.keyframes", description=__doc__)
    commands = parser.add_subparsers(required=True)
    predict = commands.add_parser("predict", help="side and quality of every still in a folder")
    predict.add_argument("folder", type=Path, help="PNG or JPEG stills, searched recursively")
    predict.add_argument("--out", type=Path, required=True, help="CSV to write")
    predict.add_argument("--model", type=Path, default=root() / DEFAULT_MODEL, help="run of 01")
    chosen = parser.parse_args(arguments)
    paths = sorted(p for p in chosen.folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        parser.error(f"no {', '.join(PICTURE_SUFFIXES)} file below {chosen.folder}")
    table = predict_frames(chosen.model, paths)
    table.insert(0, "file", [p.relative_to(chosen.folder).as_posix() for p in paths])
    table.to_csv(chosen.out, index=False)


if __name__ == "__main__":
    main()
