"""The predict command against one picture at a time through PIL and the network, as a ratio.

Run: `python tests/benchmarks/bench_predict.py`. Phantom stills of 512 x 512 as PNG and as a cine;
seconds on the wall, both ways in turn on the same machine, the network untrained of the tiny kind.
"""

import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from cag_utils.keyframes.labels import SIX_CLASSES
from cag_utils.keyframes.network import (
    autocast,
    build_model,
    load_model,
    pick_device,
    prepare,
    save_model,
)
from cag_utils.keyframes.predict import predict_files
from cag_utils.phantom.dicom import Identity, make_uid, write_xa, xa_dataset
from cag_utils.phantom.imaging.carm import CArm
from cag_utils.phantom.stills import still
from cag_utils.profiles import load_profile

N_DRAWN, N_PICTURES = 12, 384
IMAGE_PX = load_profile("phantom").cnn.image_px  # what the shipped network reads
P = [f"p_{name}" for name in SIX_CLASSES]


def write_pictures(folder: Path) -> tuple[list[Path], Path]:
    """Write the stills, each several times, and a cine of all of them; return where."""
    drawn = [still(seed, 512).image for seed in range(N_DRAWN)]
    paths = [folder / f"{i:04d}.png" for i in range(N_PICTURES)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), drawn[i % N_DRAWN], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    frames = np.stack([drawn[i % N_DRAWN] for i in range(N_PICTURES)])
    uids = (make_uid("study"), make_uid("series"), make_uid("cine"))
    identity = Identity("PHANTOM-BENCH", "F", 70, *uids, 1, "20200101", "120000")
    arm = CArm(-30.0, 25.0, 1090.0, 780.0, 0.3, 512)
    write_xa(folder / "cine.dcm", xa_dataset(frames, identity, arm, 15, 0.006))
    return paths, folder / "cine.dcm"


@torch.inference_mode()
def plain_way(model_dir: Path, paths: list[Path]) -> np.ndarray:
    """One picture after the other: PIL, OpenCV's area filter, the network, a row."""
    device = pick_device()
    model, facts = load_model(model_dir, device)
    rows = []
    for path in paths:
        with Image.open(path) as picture:
            whole = np.array(picture.convert("L"))
        small = cv2.resize(whole, (IMAGE_PX, IMAGE_PX), interpolation=cv2.INTER_AREA)
        grey = torch.from_numpy(small)[None, None].to(device)
        with autocast(device):
            scores = model(prepare(grey, facts["model"]))
        rows.append(scores[0].double().softmax(0).cpu().numpy())
    return np.stack(rows)


def predict_way(model_dir: Path, paths: list[Path]) -> np.ndarray:
    """The command's own stream."""
    tables = list(predict_files(model_dir, paths))
    return np.concatenate([table[P].to_numpy() for table in tables])


def timed(call, *arguments) -> tuple[float, np.ndarray]:
    """Return the seconds on the wall and the result."""
    start = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - start, result


def main() -> dict[str, float]:
    """Measure both ways three times in turn, keep the best, and check that they agree."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model_dir = folder / "model"
        model_dir.mkdir()
        torch.manual_seed(0)
        model = build_model("convnext_twin", pretrained=True)
        save_model(model, model_dir, {"model": "convnext_twin", "image_px": IMAGE_PX})
        paths, cine = write_pictures(folder)
        plain_way(model_dir, paths[:8]), predict_way(model_dir, paths[:64])
        plain, fast, film = [], [], []
        for _ in range(3):
            fast.append(timed(predict_way, model_dir, paths))
            plain.append(timed(plain_way, model_dir, paths))
            film.append(timed(predict_way, model_dir, [cine]))
    # Both average the pixels; where shutters are cut away first, the two pictures would differ.
    np.testing.assert_allclose(fast[0][1], plain[0][1], atol=0.03)
    assert len(film[0][1]) == N_PICTURES
    seconds = {k: min(t for t, _ in v) for k, v in (("plain", plain), ("fast", fast))}
    return {
        "predict_times_plain": round(seconds["plain"] / seconds["fast"], 2),
        "predict_stills_per_second": round(N_PICTURES / seconds["fast"]),
        "predict_cine_frames_per_second": round(N_PICTURES / min(t for t, _ in film)),
        "predict_plain_per_second": round(N_PICTURES / seconds["plain"]),
    }


if __name__ == "__main__":
    print(json.dumps(main()))
