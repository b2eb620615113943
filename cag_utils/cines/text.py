"""Text burnt into a cine: edges that stand still in every frame, and a detector that finds text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pydicom

from cag_utils.cines.reasons import NotACine

# PP-OCRv6's detector, as the wheel of rapidocr brings it (Apache-2.0); OpenCV runs it, offline.
DETECTOR = "models/PP-OCRv6_det_small.onnx"
# Choices, on phantom cines with and without text. Grey levels: an overlay moves less than X-ray
# noise does, and differs from what is beside it. Pixels of 512 rows: no stroke is broader.
STILL, CONTRAST, STROKE = 16, 24, 9
INK, REACH = 20, 8  # fewest still pixels of a text, and how far apart its letters may stand, pixels
SURE, ROUGH, HEIGHT = 0.9, 0.3, 4  # mean and least probability of a text, its least height, pixels
THIN = 0.1  # share of its box that a line covers at most; letters that touch cover more
ENLARGED, LONGEST = 1.5, 736  # what the detector is shown: how large, and pixels at most
GROWN = 1.8  # it finds the middle of a line; by this much of area / half perimeter it is grown

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom: shares of width, height


@dataclass(frozen=True)
class TextRules:
    """What to do about text in the pixels."""

    masks: Sequence[Rectangle] = ()  # blackened in every frame, before anything else is done
    reviewed: Sequence[str] = ()  # video_ids whose text somebody has seen to name nobody
    pictures: Path | None = None  # gets a picture of what is found: never below `outputs/`


NO_TEXT = TextRules()


class Extremes:
    """The darkest and the brightest that each pixel of a cine has been, two (H, W) uint8."""

    low: np.ndarray
    high: np.ndarray

    def of(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass frames, (H, W) uint8 and one at least, through and remember their extremes."""
        for number, frame in enumerate(frames):
            if not number:
                self.low, self.high = frame.copy(), frame.copy()
            cv2.min(self.low, frame, dst=self.low)
            cv2.max(self.high, frame, dst=self.high)
            yield frame

    def still_edges(self) -> np.ndarray:
        """Return what stands still and is thin, (H, W) int16: brighter than around it > 0."""
        side = max(5, round(min(self.low.shape) / 512 * STROKE) | 1)
        around = cv2.getStructuringElement(cv2.MORPH_RECT, (side, side))
        bright = cv2.morphologyEx(self.low, cv2.MORPH_TOPHAT, around).astype(np.int16)
        dark = cv2.morphologyEx(self.high, cv2.MORPH_BLACKHAT, around)
        still = cv2.subtract(self.high, self.low) <= STILL
        strong = CONTRAST if still.mean() < 0.8 else 3 * CONTRAST  # a still has vessels that stand
        edges = bright - dark
        return _without_lines(np.where(still & (np.abs(edges) >= strong), edges, 0))


def _without_lines(edges: np.ndarray) -> np.ndarray:
    """Return edges without what is too long for a letter and too thin for a line of them.

    Borders of shutters, cables and wires: most clean cines then need no detector at all.
    """
    _, part, boxes, _ = cv2.connectedComponentsWithStats(np.uint8(edges != 0), connectivity=8)
    width, height, ink = (boxes[:, i] for i in (2, 3, 4))
    long, short = np.maximum(width, height), np.minimum(width, height)
    thin = (short < HEIGHT) | (ink < THIN * width * height)
    line = (long > len(edges) / 16) & thin
    line[0] = False  # the ground
    return np.where(line[part], 0, edges)


def blacken(frame: np.ndarray, masks: Sequence[Rectangle]) -> np.ndarray:
    """Return a frame, (H, W), without what the rectangles hold; itself if there are none."""
    if not masks:
        return frame
    masked, (rows, columns) = frame.copy(), frame.shape
    for left, top, right, bottom in masks:
        down, across = (top * rows, bottom * rows), (left * columns, right * columns)
        masked[tuple(slice(int(a), int(np.ceil(b))) for a, b in (down, across))] = 0
    return masked


def refuse_text(header: pydicom.Dataset, seen: Extremes, video_id: str, rules: TextRules) -> None:
    """Check a cine for text, unless somebody has; keep a picture of what is found.

    A header that says `BurnedInAnnotation` is believed unless there are masks; one that denies it
    is not.

    Raises:
        NotACine: There is text, or the header says so; the note tells the picture's name and where.
        OSError: The picture cannot be written.
    """
    if video_id in rules.reviewed:
        return
    found = find_text(seen)
    told = str(header.get("BurnedInAnnotation", "")).strip().upper() == "YES" and not rules.masks
    if not found and not told:
        return
    if rules.pictures:
        pair = cv2.hconcat([_outlined(grey, found) for grey in (seen.low, seen.high)])
        (rules.pictures / f"{video_id}.png").write_bytes(cv2.imencode(".png", pair)[1].tobytes())
    where = "; ".join(str(list(one)) for one in found)
    raise NotACine("burnt-in text", f"{video_id} " + (f"at {where}" if found else "by its header"))


def find_text(seen: Extremes) -> list[Rectangle]:
    """Find text that stands still over a cine.

    Only thin still edges are shown to the detector, on a plain grey ground: X-ray pictures
    themselves look like text to it. A clean cine has few such edges and costs little.

    Source:
        PP-OCRv6 (PaddleOCR), the small detection network: a probability of text for each pixel.
    """
    edges = seen.still_edges()
    rows, columns = edges.shape
    ink = np.uint8(edges != 0)
    near = cv2.dilate(ink, np.ones((2 * REACH + 1,) * 2, np.uint8))
    _, part, boxes, _ = cv2.connectedComponentsWithStats(near)
    n_ink = np.bincount(part.ravel(), ink.ravel())
    found = []
    for number, (x, y, w, h, _) in enumerate(boxes.tolist()):
        if number == 0 or n_ink[number] < INK:
            continue
        at = np.s_[y : y + h, x : x + w]
        own = np.where(part[at] == number, edges[at], 0)
        for left, top, right, bottom in _texts(own, rows / 16):
            box = np.divide((x + left, y + top, x + right, y + bottom), (columns, rows) * 2)
            found.append(tuple(np.clip(box, 0, 1).round(3).tolist()))
    return found


def _texts(edges: np.ndarray, tallest: float) -> Iterator[tuple[float, float, float, float]]:
    """Boxes of text on a piece of still edges, left, top, right and bottom in its pixels."""
    shown = np.pad(np.uint8(np.clip(128 + 2 * edges, 0, 255)), 16, constant_values=128)
    scale = min(ENLARGED, LONGEST / max(shown.shape))
    size = [max(64, round(length * scale / 32) * 32) for length in shown.shape[::-1]]
    network = _detector()
    picture = cv2.cvtColor(shown, cv2.COLOR_GRAY2BGR)
    network.setInput(cv2.dnn.blobFromImage(picture, 1 / 127.5, size, (127.5,) * 3))
    probability = network.forward()[0, 0]
    _, part, boxes, _ = cv2.connectedComponentsWithStats(np.uint8(probability > ROUGH))
    ratio = np.divide(shown.shape[::-1], size)
    ink = edges != 0
    for number, (x, y, w, h, _) in enumerate(boxes.tolist()):
        (left, top), (width, height) = (x, y) * ratio - 16, (w, h) * ratio
        inside = ink[max(0, int(top)) : int(top + height) + 1, max(0, int(left)) :]
        n_ink = int(inside[:, : int(width) + 1].sum())
        if not number or n_ink < INK or not HEIGHT <= height <= min(tallest, width / 1.5):
            continue  # an edge, a vessel, one letter
        if probability[part == number].mean() >= SURE:
            more = GROWN * width * height / (2 * (width + height))
            yield left - more, top - more, left + width + more, top + height + more


def detector_file() -> Path:
    """Return where the detector's weights are.

    Raises:
        FileNotFoundError: They are not installed; without them no archive is sampled.
    """
    package = find_spec("rapidocr")
    path = Path(*package.submodule_search_locations, DETECTOR) if package else Path(DETECTOR)
    if not path.is_file():
        raise FileNotFoundError(
            f"the text detector's weights, {path}, are missing, and burnt-in names would not be "
            "seen: pip install -r requirements.lock"
        )
    return path


@cache
def _detector() -> cv2.dnn.Net:
    return cv2.dnn.readNetFromONNX(str(detector_file()))


def _outlined(grey: np.ndarray, found: Sequence[Rectangle]) -> np.ndarray:
    picture = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    for box in found:
        left, top, right, bottom = np.rint(np.multiply(box, grey.shape[::-1] * 2)).astype(int)
        cv2.rectangle(picture, (left, top), (right, bottom), (0, 0, 255))
    return picture
