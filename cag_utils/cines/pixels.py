"""Where the frames of a DICOM file lie, counted from its bytes, and how one of them is decoded."""

import re
import struct
from bisect import bisect_right
from contextlib import suppress
from itertools import pairwise
from typing import BinaryIO, NamedTuple

import numpy as np
import pydicom
from imagecodecs import LjpegError, ljpeg_decode
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder

from cag_utils.cines.reasons import NotACine

PIXEL_DATA, ITEM = 0x7FE00010, 0xFFFEE000
UNDEFINED = 0xFFFFFFFF
LOSSLESS = (uid.JPEGLossless, uid.JPEGLosslessSV1)  # liblj92 takes half of gdcm's time
SIGNED = "PixelRepresentation"
# Choices, beyond any cine: 4096 x 4096 pixels, ten minutes at 15 frames a second.
MAX_PIXELS, MAX_FRAMES, MAX_FRAGMENTS = 4096 * 4096, 9_999, 200_000
STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP")  # JPEG, JPEG 2000, JP2
NEXT_JPEG = re.compile(rb"\xff\xd9\0?(?=\xff\xd8\xff)")

Pieces = list[tuple[int, int]]  # offset in the file and number of bytes


class Layout(NamedTuple):
    """Where each frame lies: the pieces of its bytes."""

    frames: list[Pieces]
    vr: str  # of the pixel data
    is_cut: bool  # the file ends before its pixels do
    n_announced: int | None  # by the header; None if it does not say


def announced_frames(header: pydicom.Dataset) -> int | None:
    """Number of Frames as the header gives it; None if it is missing, not a number or below 1.

    Raises:
        NotACine: It is more than any cine has: nothing of such a header is believed.
    """
    try:
        told = int(header.get("NumberOfFrames") or 0)
    except (ValueError, TypeError, OverflowError):
        return None
    if told > MAX_FRAMES:
        raise NotACine("broken header", "number of frames that no file can hold")
    return told if told > 0 else None


def lay_out(header: pydicom.Dataset, file: BinaryIO) -> Layout:
    """Find the frames behind a header; no pixel is read.

    Uncompressed frames are counted by their size; of more than announced, those that are filled
    with zeros do not count. Compressed ones begin where the offset tables say, if these point to
    fragments; else where a codestream starts.

    Args:
        header: Of the file, read up to its pixels.
        file: Stands where the header ends.

    Raises:
        NotACine: There are no pixels, or not those that the header describes.
    """
    n_announced = announced_frames(header)
    size_px = int(header.Rows) * int(header.Columns)
    if size_px < 1:
        raise NotACine("broken header", "no rows or no columns")
    if size_px > MAX_PIXELS:
        raise NotACine("too large", f"{size_px} pixels a frame, {MAX_PIXELS} at most")
    start, length, vr = _find_pixels(header, file)
    end = file.seek(0, 2)
    if header.file_meta.TransferSyntaxUID.is_encapsulated:
        if length != UNDEFINED:
            raise NotACine("pixels are not what the header says", "not in fragments")
        table, fragments, is_cut = _fragments(file, start, end)
        frames = _group(file, header, table, fragments, n_announced)
        return Layout(frames, vr, is_cut, n_announced)
    n_bytes = size_px * int(header.BitsAllocated) // 8
    if length == UNDEFINED or _peek(file, start).startswith((*STARTS[:2], b"\xfe\xff\0\xe0")):
        raise NotACine("pixels are not what the header says", "compressed, said to be not")
    if int(header.BitsAllocated) not in (8, 16):
        raise NotACine("unsupported bit depth", "neither 8 nor 16 bits allocated")
    last = min(start + length, end, start + MAX_FRAMES * n_bytes) - n_bytes
    frames = [[(at, n_bytes)] for at in range(start, last + 1, n_bytes)]
    while n_announced and len(frames) > n_announced and is_zero(read_bytes(file, frames[-1])):
        frames.pop()
    return Layout(frames, vr, start + length > end, n_announced)


def _find_pixels(header: pydicom.Dataset, file: BinaryIO) -> tuple[int, int, str]:
    """Offset, length and VR of the pixel data's value."""
    order = "<" if header.original_encoding[1] else ">"
    head = file.read(8)
    if len(head) == 8:
        group, element, length = struct.unpack(f"{order}HHL", head)
        if group << 16 | element == PIXEL_DATA:
            if not header.original_encoding[0]:  # explicit VR: the length comes behind it
                long = head[4:6] in (b"OB", b"OW", b"UN")
                rest = file.read(4) if long else head[6:8]
                length = struct.unpack(f"{order}{'L' if long else 'H'}", rest)[0]
                return file.tell(), length, head[4:6].decode("latin-1")
            return file.tell(), length, "OW"
    if "Rows" in header and "IconImageSequence" in header:
        raise NotACine("only an icon image")
    file.seek(max(file.seek(0, 2) - 12, 0))  # pydicom passes over half an element
    is_whole = not head and b"\xe0\x7f\x10\0" not in file.read() and "Rows" in header
    is_whole = is_whole and not ends_short(header)
    raise NotACine("no pixel data" if is_whole else "truncated")


def ends_short(header: pydicom.Dataset) -> bool:
    """Whether the last element has fewer bytes than it says."""
    last = header.get_item(max(header.keys()))
    is_raw = isinstance(last, pydicom.dataelem.RawDataElement) and last.length != UNDEFINED
    return is_raw and len(last.value or b"") < last.length


def _fragments(file: BinaryIO, start: int, end: int) -> tuple[bytes, Pieces, bool]:
    """Basic offset table, fragments, and whether the file ends within them."""
    found: Pieces = []
    at = start
    while at + 8 <= end and len(found) <= MAX_FRAGMENTS:
        file.seek(at)
        group, element, length = struct.unpack("<HHL", file.read(8))
        if group << 16 | element != ITEM or length == UNDEFINED:
            is_cut = False  # the delimiter, or no item: what stands behind is not read
            break
        found.append((at + 8, min(length, end - at - 8)))
        at += 8 + length
    else:
        is_cut = True
    if not found or len(found) > MAX_FRAGMENTS:
        raise NotACine("truncated" if is_cut and not found else "broken pixel data", "fragments")
    file.seek(found[0][0])
    return file.read(min(found[0][1], 8 * MAX_FRAGMENTS)), found[1:], is_cut


def _group(
    file: BinaryIO, header: pydicom.Dataset, table: bytes, fragments: Pieces, announced: int | None
) -> list[Pieces]:
    """Sort fragments into frames."""
    if header.file_meta.TransferSyntaxUID == uid.RLELossless:
        return [[piece] for piece in fragments]
    starts = [_peek(file, at).startswith(STARTS) for at, _ in fragments]
    if all(starts) and len(fragments) > 1 or len(fragments) == announced:
        return [[piece] for piece in fragments]
    offsets = [x for (x,) in struct.iter_unpack("<L", table[: len(table) // 4 * 4])]
    if extended := header.get("ExtendedOffsetTable"):
        offsets = [x for (x,) in struct.iter_unpack("<Q", extended[: len(extended) // 8 * 8])]
    first = fragments[0][0] if fragments else 0
    places = [at - first for at, _ in fragments]
    if not (offsets and offsets[0] == 0 and set(offsets) <= set(places) and _rises(offsets)):
        if len(fragments) == 1 and (announced or 2) > 1:
            return _split(file, *fragments[0])
        offsets = [at for at, is_start in zip(places, starts, strict=True) if is_start]
    frames: list[Pieces] = [[] for _ in offsets]
    for at, piece in zip(places, fragments, strict=True):
        if index := bisect_right(offsets, at):
            frames[index - 1].append(piece)
    return frames


def _rises(offsets: list[int]) -> bool:
    return all(a < b for a, b in pairwise(offsets))


def _split(file: BinaryIO, start: int, length: int) -> list[Pieces]:
    """Cut one fragment that holds several JPEG frames behind each other."""
    file.seek(start)
    ends = [m.end() for m in NEXT_JPEG.finditer(file.read(length))]
    cuts = [0, *ends, length]
    return [[(start + a, b - a)] for a, b in pairwise(cuts)]


def _peek(file: BinaryIO, at: int) -> bytes:
    file.seek(at)
    return file.read(8)


def is_zero(data: bytes) -> bool:
    """Whether nothing but zeros is there."""
    return not any(data)


def read_bytes(file: BinaryIO, pieces: Pieces) -> bytes:
    """Return the bytes of one frame."""
    parts = []
    for at, length in pieces:
        file.seek(at)
        parts.append(file.read(length))
    return b"".join(parts)


def decode_frame(header: pydicom.Dataset, data: bytes, vr: str) -> np.ndarray:
    """Decode the bytes of one frame to the stored values, (H, W) of 8 or 16 bits, unused ones too.

    Raises:
        NotACine: They are no picture, or another than the header says; no decoder is asked to make
            a picture larger than the header's.
    """
    syntax, shape = header.file_meta.TransferSyntaxUID, (int(header.Rows), int(header.Columns))
    if is_zero(data):
        raise NotACine("blank frame", "only zeros")
    if syntax.is_encapsulated and syntax != uid.RLELossless:
        if (found := picture_size(data)) != shape:
            note = "no JPEG or JPEG 2000" if found is None else "a picture of another size"
            raise NotACine("broken pixel data", note)
    if syntax in LOSSLESS and is_plain_lossless(data):
        with suppress(LjpegError):  # else gdcm may still make something of it
            pixels = ljpeg_decode(data)
            if pixels.shape == shape and 8 * pixels.itemsize == int(header.BitsAllocated):
                return pixels.view(f"i{pixels.itemsize}" if header.get(SIGNED) else pixels.dtype)
    try:
        pixels, _ = get_decoder(syntax).as_array(
            encapsulate([data]) if syntax.is_encapsulated else data,
            index=0,
            raw=True,
            decoding_plugin="pillow" if syntax == uid.JPEGBaseline8Bit else "",  # 2.5 times as fast
            correct_unused_bits=False,
            number_of_frames=1,
            rows=shape[0],
            columns=shape[1],
            samples_per_pixel=1,
            photometric_interpretation=header.get("PhotometricInterpretation", "MONOCHROME2"),
            bits_allocated=int(header.BitsAllocated),
            bits_stored=min(int(header.BitsStored), int(header.BitsAllocated)),
            pixel_representation=int(header.get("PixelRepresentation", 0)),
            pixel_keyword="PixelData",
            pixel_vr=vr,
        )
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken data
        raise NotACine("broken pixel data", type(error).__name__, error) from error
    return pixels


def is_plain_lossless(data: bytes) -> bool:
    """Whether a lossless JPEG has neither restarts nor shifted levels, which liblj92 ignores."""
    scan = data.find(b"\xff\xda")
    head = data[scan + 2 : scan + 4 + 8]
    return b"\xff\xdd" not in data[:scan] and scan > 0 and len(head) == 10 and not head[7] & 15


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 codestream gives itself, if it is one."""
    if (at := data[:256].find(STARTS[1])) >= 0 and len(data) >= at + 24:  # SIZ comes first
        width, height, left, top = struct.unpack(">4L", data[at + 8 : at + 24])
        return height - top, width - left
    at = 2
    while data.startswith(b"\xff\xd8") and at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:
            return struct.unpack(">HH", data[at + 5 : at + 9])
        at += 1 if marker == 0xFF else 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return None
