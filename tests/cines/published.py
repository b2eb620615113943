"""Small sets made up in the layouts in which ARCADE and CADICA are published."""

import json

import cv2
import numpy as np

from cag_utils.phantom.stills import still
from cag_utils.segments import AHA_SEGMENTS

LABELS = [label for row in AHA_SEGMENTS.values() for label in row.syntax] + ["stenosis"]
CATEGORIES = [{"id": i, "name": label} for i, label in enumerate(LABELS, 1)]
ID_OF = {row["name"]: row["id"] for row in CATEGORIES}


def box(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def grey(seed, size=64):
    return np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)


def write_split(place, pictures, annotations, size=64):
    """`{file_name: picture}` and (image_id, label, outline, annotation id); ids count from 1."""
    for name in ("images", "annotations"):
        (place / name).mkdir(parents=True)
    for name, picture in pictures.items():
        cv2.imwrite(str(place / "images" / name), picture)
    images = [
        {"id": i, "file_name": name, "width": size, "height": size}
        for i, name in enumerate(pictures, 1)
    ]
    rows = [
        {"id": number, "image_id": image, "category_id": ID_OF[label], "segmentation": [outline],
         "bbox": [0, 0, 1, 1], "area": 1.0, "iscrowd": 0}
        for image, label, outline, number in annotations
    ]  # fmt: skip
    content = {"images": images, "categories": CATEGORIES, "annotations": rows}
    path = place / "annotations" / f"{place.name}.json"
    path.write_text(json.dumps(content), encoding="utf-8")


def draw_arcade(top, n, size=512):
    """`n` phantom stills, sides in turn, as ARCADE's syntax set; every third one's lesions too."""
    both = {"syntax": [], "stenosis": []}
    for seed in range(n):
        made = still(seed, size, laterality=("LCA", "RCA")[seed % 2])
        outlines = []
        for segment in sorted(set(made.segments.tolist())):
            points = made.points[made.segments == segment]
            (x, y), (u, v) = points.min(0), points.max(0)
            label = AHA_SEGMENTS[segment].syntax[0]
            outlines.append((label, box(float(x), float(y), float(u - x) + 1, float(v - y) + 1)))
        plaques = [("stenosis", box(x - 4, y - 4, 8, 8)) for x, y, _ in made.lesion_points.tolist()]
        both["syntax"].append((made.image, outlines))
        if seed % 3 == 0 and plaques:
            both["stenosis"].append((made.image, plaques))
    for part, made in both.items():
        for k, split in enumerate(("train", "val", "test")):
            own = made[k::3]
            drawn = [(i, *x, 7) for i, (_, found) in enumerate(own, 1) for x in found]
            pictures = {f"{i}.png": picture for i, (picture, _) in enumerate(own, 1)}
            write_split(top / part / split, pictures, drawn, size)


def write_cadica(top):
    """Two patients: p1 with a lesion (v2) and without (v10), p2 with a right cine not listed."""
    selected = top / "selectedVideos"
    boxes = {"p1_v2_00003": "10 20 30 40 p50_70\n5 6 7 8 p99\n1 2 3 4 p50_70\n", "p1_v2_00004": ""}
    for video, frames, lesion in (("p1/v2", (3, 4), True), ("p1/v10", (2,), False),
                                  ("p2/v1", (1,), True)):  # fmt: skip
        folder, stem = selected / video, video.replace("/", "_")
        (folder / "input").mkdir(parents=True)
        for frame in range(1, 6):
            picture = grey(sum(map(ord, stem)) + frame)
            cv2.imwrite(str(folder / "input" / f"{stem}_{frame:05d}.png"), picture)
        listed = "\n".join(f"{stem}_{frame:05d}" for frame in frames)
        (folder / f"{stem}_selectedFrames.txt").write_text(listed, encoding="utf-8")
        name = "lesionVideos.txt" if lesion else "nonlesionVideos.txt"
        (folder.parent / "nonlesionVideos.txt").touch()
        with (folder.parent / name).open("a", encoding="utf-8") as file:
            file.write(f"{folder.name}\n")
        if lesion:
            (folder / "groundtruth").mkdir()
    for name, text in boxes.items():
        path = selected / "p1" / "v2" / "groundtruth" / f"{name}.txt"
        path.write_text(text, encoding="utf-8")
    sides = {"videosLCA": ["p1_v10"], "videosLCA2": ["p1_v2"], "videosRCA": []}
    (selected / "CADICAprojections.json").write_text(json.dumps(sides), encoding="utf-8")
