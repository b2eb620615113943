"""How the stored values of an XA cine become grey: one function, and a check of what comes out."""

from collections.abc import Callable, Iterable, Mapping

import cv2
import numpy as np
import pydicom
from pydicom.pixels.processing import apply_voi, apply_windowing

from cag_utils.cines.reasons import NotACine

# A cine whose pixels nearly all fall into so few levels is no picture; choices. 12 bits in 16 give
# 16 levels; where only Bits Stored say how wide values are, more are asked for.
FEW_LEVELS, FEW_OF_FULL, NEARLY_ALL = 16, 32, 0.98
TAIL = 0.001  # share of the pixels beyond either end of a cine's own range; choice: dead pixels
GROUPS = (("PerFrameFunctionalGroupsSequence", None), ("SharedFunctionalGroupsSequence", 0))
DECIDE = (
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "RescaleSlope",
    "RescaleIntercept", "PixelIntensityRelationship",
)  # fmt: skip


def find(header: pydicom.Dataset, name: str, frame: int = 0) -> object:
    """Return an attribute as it holds for one frame, None if there is none.

    Looked for in the frame's functional groups, then in the shared ones, then in the root.
    """
    for sequence, index in GROUPS:
        groups = header.get(sequence) or ()
        at = frame if index is None else index
        for element in groups[at] if at < len(groups) else ():
            if element.VR == "SQ" and element.value and name in element.value[0]:
                return element.value[0].get(name)
    return header.get(name)


def numbers(value: object) -> np.ndarray:
    """The finite numbers of an attribute's value, (n,) float64; none when it is unreadable."""
    try:
        values = np.atleast_1d(np.asarray(value, dtype=np.float64))  # None becomes NaN
    except (ValueError, TypeError, ArithmeticError):  # text where a number belongs
        return np.empty(0)
    return values[np.isfinite(values)]


class GreyScale:
    """The map from a cine's stored values to 0-255, contrast agent dark.

    Ways are tried in order until one gives a picture; a way that is not the first is noted. Of more
    than 8 bits: the (first possible) window, the VOI LUT, the full range of Bits Stored, the cine's
    own range. Of 8 bits the full range comes first, so that the usual cine is kept as it is and
    nothing depends on a viewer's preset. A way gives no picture if 98 % of the pixels fall into
    few of the 256 levels (all black, all white, a window that cuts, bits that are not used).

    A Modality LUT is ignored: XA's leads back to X-ray intensity and is not meant for display
    (DCMTK does the same). A rescale counts unless the pixels are LOG or DISP. High Bit is honoured;
    values wider than Bits Stored are believed. MONOCHROME1 is inverted. Windows, LUTs and rescales
    of Enhanced XA hold for their frames.

    Source:
        DICOM PS3.3 C.8.7.1.1.2 (Pixel Intensity Relationship), C.11.1 (Modality LUT), C.11.2 (VOI
        LUT and window), C.7.6.16.2.9 and .10 (their functional groups); PS3.5 8.1.1 (unused bits).
    """

    def __init__(
        self,
        header: pydicom.Dataset,
        sample: Mapping[int, np.ndarray],
        every: Callable[[], Iterable[np.ndarray]],
    ):
        """Choose the way.

        Args:
            sample: Some frames of the cine as decoded, (H, W) integers of 8 or 16 bits each.
            every: Gives all of them, again at each call; asked only for the cine's own range.

        Raises:
            NotACine: No way gives a picture, or the values have more than 16 bits.
        """
        self._header, self.notes = header, set()
        self._dtype = next(iter(sample.values())).dtype
        if self._dtype.itemsize > 2 or self._dtype.kind not in "ui":
            raise NotACine("unsupported bit depth", "more than 16 bits")
        self._stored, self._ends = self._stored_values(list(sample.values()))
        self._is_grouped = GROUPS[0][0] in header
        ways = [(self._window, "the window"), (self._lut, "the VOI LUT")]
        full = (self._full, "the full range")
        ways.insert(0 if self._ends[1] - self._ends[0] <= 255 else 2, full)
        asked = 0
        for way, name in ways:
            self._way, self._tables = way, {}
            greys = [self(stored, frame) for frame, stored in sample.items()]
            if any(grey is None for grey in greys):
                continue
            asked += 1
            is_wide = way == self._full and self._ends[1] - self._ends[0] > 255
            if not is_flat(greys, FEW_OF_FULL if is_wide else FEW_LEVELS):
                self.notes |= {f"mapped by {name}"} if asked > 1 else set()
                return
        self._ends = self._own_range(every())
        self._way, self._tables = self._full, {}
        self.notes.add("mapped by the cine's own range")

    def __call__(self, stored: np.ndarray, frame: int) -> np.ndarray | None:
        """Map one frame, (H, W) as decoded, to uint8; None if the way is not open to it."""
        key = tuple(str(find(self._header, n, frame)) for n in DECIDE) if self._is_grouped else ()
        if key not in self._tables:
            self._tables[key] = self._table(frame)
        table = self._tables[key]
        if table is None or (len(table) == 256 and (table == np.arange(256)).all()):
            return None if table is None else np.ascontiguousarray(stored, dtype=np.uint8)
        return table[stored.astype(self._dtype, copy=False).view(f"u{self._dtype.itemsize}")]

    def _table(self, frame: int) -> np.ndarray | None:
        """Grey of each bit pattern, (256,) or (65536,) uint8."""
        slope, intercept = self._rescale(frame)
        levels = self._way(self._stored * slope + intercept, frame)
        if levels is None or not np.isfinite(levels).all():
            return None
        table = np.round(levels).clip(0, 255).astype(np.uint8)
        return (
            255 - table if self._header.get("PhotometricInterpretation") == "MONOCHROME1" else table
        )

    def _stored_values(self, sample: list[np.ndarray]) -> tuple[np.ndarray, tuple[float, float]]:
        """What each bit pattern stands for, (256,) or (65536,) int64, and the two ends."""
        allocated, has_sign = 8 * self._dtype.itemsize, self._dtype.kind == "i"
        bits = min(int(self._header.BitsStored), allocated)
        shift = int(self._header.get("HighBit", bits - 1)) + 1 - bits
        patterns = np.arange(2**allocated, dtype=f"u{self._dtype.itemsize}")
        used = int(np.bitwise_or.reduce([np.bitwise_or.reduce(x, axis=None) for x in sample]))
        used &= 2**allocated - 1
        overlaid = any(
            (group, 0x0102) in self._header and (group, 0x3000) not in self._header
            for group in range(0x6000, 0x6020, 2)
        )
        if not 0 < shift <= allocated - bits or (used % 2**shift and not overlaid):
            shift = 0
        least, most = min(int(x.min()) for x in sample), max(int(x.max()) for x in sample)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if has_sign else (0, 2**bits - 1)
        if not shift and not overlaid and not low <= least <= most <= high and used >= 2**bits:
            bits = max(most.bit_length(), (~least).bit_length()) + has_sign
            self.notes.add("pixels exceed Bits Stored")
        values = (patterns.astype(np.int64) >> shift) % 2**bits
        if has_sign:
            values -= 2**bits * (values >= 2 ** (bits - 1))
            return values, (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return values, (0, 2**bits - 1)

    def _rescale(self, frame: int) -> tuple[float, float]:
        told = [find(self._header, f"Rescale{name}", frame) for name in ("Slope", "Intercept")]
        if find(self._header, "PixelIntensityRelationship", frame) in ("LOG", "DISP"):
            return 1.0, 0.0
        slope, intercept = (next(iter(numbers(value)), np.nan) for value in told)
        if not 1e-12 < abs(slope) < 1e12 or not abs(intercept) < 1e12:
            self.notes |= {"impossible rescale ignored"} if None not in told else set()
            return 1.0, 0.0
        return slope, intercept

    def _full(self, values: np.ndarray, frame: int) -> np.ndarray:
        slope, intercept = self._rescale(frame)
        low, high = sorted(end * slope + intercept for end in self._ends)
        return (values - low) * 255.0 / (high - low)

    def _window(self, values: np.ndarray, frame: int) -> np.ndarray | None:
        """Of the first possible window."""
        pairs = [find(self._header, f"Window{name}", frame) for name in ("Center", "Width")]
        if None in pairs or "" in pairs:
            return None
        function = str(find(self._header, "VOILUTFunction", frame) or "LINEAR").upper()
        function = function if function in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"
        for center, width in zip(*(np.atleast_1d(value) for value in pairs), strict=False):
            view = pydicom.Dataset()  # without depth and rescale, pydicom spans 0-255 with it
            view.BitsStored, view.PixelRepresentation = 8, 0
            view.PhotometricInterpretation, view.VOILUTFunction = "MONOCHROME2", function
            [*center], [*width] = numbers(center), numbers(width)
            if center and width and width[0] >= (1 if function == "LINEAR" else 1e-9):
                view.WindowCenter, view.WindowWidth = f"{center[0]:.10g}", f"{width[0]:.10g}"
                return apply_windowing(values, view)
            self.notes.add("impossible window ignored")
        return None

    def _lut(self, values: np.ndarray, frame: int) -> np.ndarray | None:
        items = find(self._header, "VOILUTSequence", frame)
        if not items:
            return None
        view = pydicom.Dataset()
        view.VOILUTSequence = items
        view.set_original_encoding(*self._header.original_encoding)
        try:
            bits = int(items[0].LUTDescriptor[2])
            return apply_voi(np.round(values).astype(np.int64), view) * (255.0 / (2**bits - 1))
        except Exception:  # pydicom raises nearly anything on a broken LUT
            self.notes.add("VOI LUT ignored")
            return None

    def _own_range(self, frames: Iterable[np.ndarray]) -> tuple[float, float]:
        """The stored values between which all but a thousandth at either end lie."""
        counts = np.zeros(len(self._stored), np.int64)
        for stored in frames:
            patterns = stored.astype(self._dtype, copy=False).view(f"u{self._dtype.itemsize}")
            counts += np.bincount(patterns.ravel(), minlength=len(counts))
        order = np.argsort(self._stored, kind="stable")
        share = np.cumsum(counts[order]) / max(counts.sum(), 1)
        low, high = (self._stored[order][np.searchsorted(share, q)] for q in (TAIL, 1 - TAIL))
        if low == high:
            raise NotACine("no picture", "nearly all pixels have the same value")
        return float(low), float(high)


def is_flat(greys: Iterable[np.ndarray], few: int = FEW_LEVELS) -> bool:
    """Whether nearly all pixels, uint8, of some frames fall into so few grey levels."""
    counts = sum(cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel() for grey in greys)
    return bool(np.sort(counts)[-few:].sum() >= NEARLY_ALL * counts.sum())
