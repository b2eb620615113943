"""Read XA cines from a folder, or say of each file why it is not one."""

import hashlib
import io
import math
import os
import re
import stat
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom import uid
from pydicom.pixels import get_decoder
from tqdm import tqdm

from cag_utils.cines.grey import GreyScale, find, numbers
from cag_utils.cines.guard import Cluster, Guard
from cag_utils.cines.pixels import decode_frame, ends_short, lay_out, read_bytes
from cag_utils.cines.reasons import NotACine, Rejected

XA_CLASSES = (uid.XRayAngiographicImageStorage, uid.EnhancedXAImageStorage)
# What archives hold beside pictures, by how its SOP class begins or by its name.
BESIDE = {
    "1.2.840.10008.5.1.4.1.1.88.": "report", "1.2.840.10008.5.1.4.1.1.11.": "presentation state",
    "1.2.840.10008.5.1.4.1.1.104.": "encapsulated document", "1.2.840.10008.5.1.4.1.1.9.":
    "waveform", "1.2.840.10008.5.1.4.1.1.66": "raw data",
}  # fmt: skip
OF_PIXELS = ("Rows", "Columns", "BitsAllocated", "BitsStored")
SYSTEM_FILES = ("thumbs.db", ".ds_store", "desktop.ini", "autorun.inf")
CINE_SUFFIXES = (".dcm", ".dicom", ".ima")  # a file with another name is told by its first bytes
N_SAMPLE = 8  # frames that decide how a cine becomes grey; choice: before, in and after contrast
MAX_BYTES = 256 * 2**20  # of a deflated file or a zip's member, which are held in memory; choice
KEEP_BYTES = 64 * 2**20  # of a cine that is held decoded; of a longer one, frames are decoded twice
GUESSED = {  # implicit VR, little endian
    (True, True): uid.ImplicitVRLittleEndian, (False, True): uid.ExplicitVRLittleEndian,
    (False, False): uid.ExplicitVRBigEndian,
}  # fmt: skip
WORD, SMALL = re.compile(r"[^\W_]+"), re.compile("[a-z]{1,2}")
VECTOR = 0x00181065  # Frame Time Vector
PER_FRAME = "PerFrameFunctionalGroupsSequence"
MS = (4.0, 5000.0)  # between two frames: what an angiograph can do; other times are typing errors


@dataclass(frozen=True)
class Cine:
    """What the header of one XA cine says; numbers that it does not give are NaN."""

    path: Path
    patient: str  # PatientID, or the study's UID when the header has none
    exam: str  # Study Instance UID
    video: str  # SOP Instance UID
    n_frames: int  # that are there, at least 2
    rows: int
    columns: int
    frame_time_ms: float  # mean time between frames
    primary_angle_deg: float  # LAO positive, RAO negative; signs of old files cannot be trusted
    secondary_angle_deg: float  # CRA positive, CAU negative
    spacing_mm: float  # pixel spacing at the isocentre
    person: str = ""  # name and birth date, to tell people apart who share an id; stays private
    issuer: str = ""  # of the patient id
    is_cut: bool = False
    notes: frozenset[str] = frozenset()  # of `reasons.NOTES`
    copies: tuple[Path, ...] = ()  # further files of the same SOP instance, if this one is broken


def scan(folder: Path, guard: Guard | Cluster | None = None) -> tuple[list[Cine], list[Rejected]]:
    """Sort everything below a folder into cines and rejected files, each in path order.

    Hidden files count; links to folders, which could lead round in circles, are rejected. Files in
    a zip count in its place. Only headers are read: broken pixels show later, in `Film`.

    Raises:
        NotADirectoryError: `folder` is not a folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder of DICOM files")
    files, rejected = list_files(folder)
    by_video: dict[str, list[Cine]] = defaultdict(list)
    with nullcontext(guard) if guard else Guard() as workers:
        found = workers.run(_look, files)
        for path, cine in tqdm(found, total=len(files), desc="headers", mininterval=30):
            if isinstance(cine, NotACine):
                rejected.append(Rejected.of(path, cine))
            else:
                by_video[cine.video].append(cine)
        several = [c.path for same in by_video.values() if len(same) > 1 for c in same]
        contents = {p: c for p, c in workers.run(_digest, several) if isinstance(c, tuple)}
    cines: list[Cine] = []
    for same in by_video.values():
        kept, doubles = _tell_copies(same, contents) if len(same) > 1 else (same, [])
        cines += kept
        rejected += doubles
    cines = _tell_people(cines)
    return sorted(cines, key=lambda cine: cine.path), sorted(rejected, key=lambda r: r.path)


def _tell_copies(
    same: list[Cine], contents: dict[Path, object]
) -> tuple[list[Cine], list[Rejected]]:
    """Sort files of one SOP instance: copies of one content, or contents that share a UID.

    A file that is cut is a copy of the whole one that begins with the same frame. Where one UID
    stands for several contents, none keeps it: each gets a stand-in, so that no label given by the
    UID meets the wrong cine.
    """
    groups: list[list[Cine]] = []
    contents = {c.path: contents.get(c.path, (str(c.path),) * 2) for c in same}
    for cine in sorted(same, key=lambda cine: (cine.is_cut, cine.path)):
        mine = contents[cine.path]
        for group in groups:
            theirs = contents[group[0].path]
            if mine == theirs or (cine.is_cut and mine[0] == theirs[0]):
                group.append(cine)
                break
        else:
            groups.append([cine])
    kept, doubles = [], []
    for group in groups:
        group.sort(key=lambda cine: cine.path)
        first, rest = group[0], tuple(cine.path for cine in group[1:])
        if len(groups) > 1:
            notes = first.notes | {"one UID, several contents"}
            digest = contents[max(group, key=lambda cine: not cine.is_cut).path][1]
            first = replace(first, video=f"{first.video} {digest}", notes=notes)
        kept.append(replace(first, copies=rest))
        doubles += [Rejected(path, "duplicate", "of the same SOP instance") for path in rest]
    return kept, doubles


def _tell_people(cines: list[Cine]) -> list[Cine]:
    """Note ids that do not tell people apart; equal ids of different issuers become two."""
    people, issuers, patients, exams = (defaultdict(set) for _ in range(4))
    for c in cines:
        people[c.patient].add(c.person)
        issuers[c.patient].add(c.issuer)
        patients[c.exam].add(c.patient)
        exams[c.patient].add(c.exam)
    told = []
    for c in cines:
        several = len(issuers[c.patient] - {""}) > 1
        facts = {
            "one patient id of several issuers": several,
            "one patient id for several names": len(people[c.patient] - {""}) > 1 and not several,
            "one patient id for all exams": len(people) == 1 and len(exams[c.patient]) > 1,
            "one study in two patients": len(patients[c.exam]) > 1,
        }
        patient = f"{c.patient} of {c.issuer}" if several else c.patient
        notes = c.notes | {note for note, holds in facts.items() if holds}
        told.append(replace(c, patient=patient, notes=notes))
    return told


def path_within(path: Path, folder: Path) -> str:
    r"""Return a path within a folder as text; names that are not UTF-8 are legal on Linux.

    Bytes that are no text become `\xNN`, and a backslash of the name is doubled: no two names
    give the same text.
    """
    name = os.fsencode(path.relative_to(folder).as_posix()).replace(b"\\", b"\\\\")
    return name.decode("utf-8", "backslashreplace")


def path_from(folder: Path, text: str) -> Path:
    """Return the path that `path_within` has written down."""
    byte = lambda x: bytes.fromhex(x[1].decode()) if x[1] else b"\\"  # noqa: E731
    return folder / os.fsdecode(re.sub(rb"\\(?:x(..)|\\)", byte, text.encode()))


def _look(path: Path) -> Iterator[Cine]:
    yield read_header(path)


def _digest(path: Path) -> Iterator[tuple[str, str]]:
    """Eight hex digits of a file's first frame, and of all."""
    with open_film(path) as film:
        total = hashlib.sha256()
        first = ""
        for pieces in film.layout.frames:
            total.update(read_bytes(film.file, pieces))
            first = first or total.hexdigest()[:8]
        yield first, total.hexdigest()[:8]


def read_header(path: Path) -> Cine:
    """Read one file's header, without its pixels, and count its frames.

    Raises:
        NotACine: It is not a readable, multi-frame, grey XA image; the reason says which.
    """
    with open_film(path) as film:
        if film.n_frames < 2:
            if film.layout.is_cut or (film.layout.n_announced or 1) > 1:
                raise NotACine("truncated", "fewer than 2 frames are left")
            raise NotACine("single frame, not a cine")
        with _explained("broken header"):
            return _describe(path, film)


def iter_frames(path: Path, frames: Sequence[int] | None = None) -> Iterator[np.ndarray]:
    """Decode a cine in this process; see `Film.frames`, which also goes on after a broken frame.

    Args:
        frames: Indices from 0; all if None.

    Yields:
        uint8 (H, W), by the rule of `GreyScale`.

    Raises:
        NotACine: There are no pixels, or a frame is missing or does not decode.
    """
    with open_film(path) as film:
        for _, grey in film.frames(range(film.n_told) if frames is None else frames):
            if isinstance(grey, NotACine):
                raise grey
            yield grey


class Film:
    """An open cine: its header, where its frames lie, and the way to their grey levels."""

    def __init__(self, path: Path, header: pydicom.Dataset, file: BinaryIO, notes: set[str]):
        """Take an open file, which stands before its pixels; see `open_film`."""
        self.path, self.header, self.file, self.notes = path, header, file, notes
        self.layout = layout = lay_out(header, file)
        self.n_frames = len(layout.frames)  # that are there, be they broken
        self.n_told = max(self.n_frames, layout.n_announced or 0)
        if self.n_frames != (layout.n_announced or 1):
            self.notes.add("the header's number of frames is wrong")
        if any(0x6000 <= tag.group < 0x6020 for tag in header.keys()):
            self.notes.add("overlays left out")
        n_bytes = self.n_frames * int(header.Rows) * int(header.Columns) * int(header.BitsAllocated)
        self._keeps = n_bytes <= 8 * KEEP_BYTES
        self._kept: dict[int, np.ndarray | NotACine] = {}
        self._scale: GreyScale | None = None

    def frames(self, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray | NotACine]]:
        """Decode frames; only one is in memory at a time if the cine is long.

        Yields:
            The index, and uint8 (H, W) or why this frame cannot be had.

        Raises:
            NotACine: None of some frames that were tried first decodes, or nothing of them is seen.
        """
        for index in wanted:
            stored = self._stored(index)
            if isinstance(stored, NotACine):
                yield index, stored
                continue
            with _explained("broken header"):
                grey = self.grey_scale()(stored, index)
            yield index, grey

    def grey_scale(self) -> GreyScale:
        """Return the map to grey levels, from some frames spread over the cine.

        Raises:
            NotACine: No frame decodes, or nothing is seen on those that were tried.
        """
        if self._scale is None:
            spread = np.linspace(0, self.n_frames - 1, N_SAMPLE).astype(int).tolist()
            sample: dict[int, np.ndarray] = {}
            for index in dict.fromkeys([*spread, *range(self.n_frames)]):
                if index not in spread and sample:
                    break
                if not isinstance(stored := self._stored(index), NotACine):
                    sample[index] = stored
            if not sample:
                raise self._stored(0)
            with _explained("broken header"):
                self._scale = GreyScale(self.header, sample, self._all_stored)
            self.notes |= self._scale.notes
        return self._scale

    def _all_stored(self) -> Iterator[np.ndarray]:
        frames = (self._stored(i) for i in range(self.n_frames))
        return (stored for stored in frames if not isinstance(stored, NotACine))

    def _stored(self, index: int) -> np.ndarray | NotACine:
        if index in self._kept:
            return self._kept[index]
        if index >= self.n_frames:
            return NotACine("truncated" if self.layout.is_cut else "missing frame")
        try:
            with _explained("broken header"):
                data = read_bytes(self.file, self.layout.frames[index])
                stored = decode_frame(self.header, data, self.layout.vr)
        except NotACine as problem:
            is_last = self.layout.is_cut and index == self.n_frames - 1
            stored = NotACine("truncated", problem.note, problem.detail) if is_last else problem
        if self._keeps:
            self._kept[index] = stored
        return stored


@contextmanager
def open_film(path: Path) -> Iterator[Film]:
    """Open a grey XA image, of one frame or many; its pixels are not decoded yet.

    Raises:
        NotACine: It is none; the reason says why.
    """
    with _open(path) as plain:
        header, file, notes = _read(plain)
        with _explained("broken header"):
            at = file.tell()
            _check_kind(header, is_at_end=not file.read(1))
            file.seek(at)
            film = Film(path, header, file, notes)
            if not film.n_frames:
                raise NotACine("truncated" if film.layout.is_cut else "no pixel data")
        yield film


@contextmanager
def _explained(reason: str) -> Iterator[None]:
    """Give whatever pydicom and its readers raise a reason; their warnings quote the header."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (NotACine, MemoryError):
        raise
    except OSError as error:
        raise NotACine("unreadable file", error.strerror or "input error", error) from error
    except Exception as error:  # nearly anything, on a broken file
        raise NotACine(reason, type(error).__name__, error) from error


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file, or a zip's member, `archive.zip/folder/name`."""
    try:
        archive = next(
            (p for p in path.parents if p.suffix.lower() == ".zip" and p.is_file()), None
        )
        if archive:
            with zipfile.ZipFile(archive) as members:
                facts = members.getinfo(path.relative_to(archive).as_posix())
                if facts.file_size > MAX_BYTES:
                    raise NotACine("too large", f"more than {MAX_BYTES // 2**20} MB in a zip")
                file = io.BytesIO(members.read(facts))
        else:
            if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
                raise NotACine("not a regular file")
            file = path.open("rb")
    except NotACine:
        raise
    except OSError as error:
        raise NotACine("unreadable file", error.strerror or "input error", error) from error
    except Exception as error:  # of a zip: a password, a wrong sum, an unknown method
        raise NotACine("unreadable file", f"broken zip ({type(error).__name__})", error) from error
    with file:
        yield file


def _read(file: BinaryIO) -> tuple[pydicom.Dataset, BinaryIO, set[str]]:
    """Header, the file that stands where it ends (another one if it is deflated), and notes."""
    start = file.read(132)
    has_magic = start[128:] == b"DICM"
    if not start:
        raise NotACine("empty file")
    if start.startswith(b"%PDF"):
        raise NotACine("passed over", "PDF")
    if not _starts_like_dicom(start):
        raise NotACine("not a DICOM file")
    try:
        with _explained("broken header"):
            header, file = _parse(file, has_magic)
    except NotACine as problem:
        if problem.reason != "broken header" or file.read(1):
            raise
        raise NotACine("truncated", problem.note, problem.detail) from problem
    if not has_magic and "SOPClassUID" not in header:
        raise NotACine("not a DICOM file")
    if "TransferSyntaxUID" in header.file_meta:
        return header, file, set()
    header.file_meta.TransferSyntaxUID = GUESSED[header.original_encoding]
    return header, file, {"no transfer syntax, no preamble or no file header"}


def _parse(file: BinaryIO, has_magic: bool) -> tuple[pydicom.Dataset, BinaryIO]:
    file.seek(132 if has_magic else 0)
    meta = pydicom.filereader._read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
        file = _inflate(file)
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        header.file_meta = meta
        return header, file
    file.seek(0)
    return pydicom.dcmread(file, stop_before_pixels=True, force=not has_magic), file


def _inflate(file: BinaryIO) -> BinaryIO:
    """What is deflated behind the file header, in memory.

    Raises:
        NotACine: It is more than `MAX_BYTES`; no more than these were taken.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(file.read(), MAX_BYTES)
    if inflater.unconsumed_tail:
        raise NotACine("too large", f"more than {MAX_BYTES // 2**20} MB when inflated")
    return io.BytesIO(data)


def file_bytes(path: Path) -> int | None:
    """Bytes of a file, a link's own, or of a zip's member; None if it is gone or closed."""
    with suppress(OSError):
        return path.lstat().st_size
    with suppress(NotACine), _open(path) as file:
        return file.seek(0, 2)
    return None


def public_words(rejected: Rejected) -> str:
    """Return why, in our words and a library's, without what it may have quoted.

    Left out (`…`) of the library's words: what stands in quotation marks, numbers of 4 digits and
    more, and each word that occurs in the file's first 64 kB or in its path.
    """
    known = str(rejected.path)
    with suppress(NotACine), _open(rejected.path) as file:
        known += " " + file.read(65536).decode("latin-1")
    told = set(WORD.findall(known.lower()))
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\d[\d.]{3,}", "…", rejected.detail)

    def shown(word: re.Match) -> str:  # two small letters are no name, and may be a code's
        return word[0] if word[0].lower() not in told or SMALL.fullmatch(word[0]) else "…"

    words = WORD.sub(shown, text)
    return f"{rejected.note}: {words}".strip(": ")


def looks_like_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes or its suffix; one that is closed may be."""
    if path.suffix.lower() in CINE_SUFFIXES:
        return True
    try:
        with _open(path) as file:
            return _starts_like_dicom(file.read(132))
    except NotACine as problem:
        return problem.reason == "unreadable file"


def _starts_like_dicom(start: bytes) -> bool:
    """By the magic word, or without preamble by a first tag of group 2 or 8."""
    return start[128:] == b"DICM" or (start[:2] in (b"\2\0", b"\x08\0") and start[3:4] == b"\0")


def list_files(folder: Path) -> tuple[list[Path], list[Rejected]]:
    """Everything below a folder that is no folder, zips opened, and what cannot be entered."""
    files: list[Path] = []
    closed: list[Rejected] = []

    def remember(error: OSError) -> None:
        at = Path(error.filename)
        closed.append(Rejected(at, "closed folder", error.strerror or "", str(error)))

    for top, folders, names in os.walk(folder, onerror=remember):
        links = [Path(top) / name for name in folders]
        closed += [Rejected(p, "link to a folder", "not followed") for p in links if p.is_symlink()]
        for path in (Path(top) / name for name in names):
            if path.name.lower() in SYSTEM_FILES:
                closed.append(Rejected(path, "passed over", "system file"))
            else:
                files += _members(path) or [path]
    return sorted(files), closed


def _members(path: Path) -> list[Path]:
    """Files in a zip, as paths below it; none if it is no zip, or a broken one."""
    if path.suffix.lower() != ".zip":
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return [path / m.filename for m in archive.infolist() if not m.is_dir()]
    except (OSError, zipfile.BadZipFile, ValueError):
        return []


def _check_kind(header: pydicom.Dataset, is_at_end: bool) -> None:
    """Raise NotACine unless the header describes grey XA frames that can be decoded."""
    kind = str(header.get("SOPClassUID", "") or "")
    if header.file_meta.get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage:
        raise NotACine("passed over", "DICOMDIR")
    for start, name in BESIDE.items():
        if kind.startswith(start):
            raise NotACine("passed over", name)
    if kind == uid.XRay3DAngiographicImageStorage:
        raise NotACine("3-D reconstruction")
    modality = str(header.get("Modality", "") or "missing")
    is_xa = kind in XA_CLASSES or modality == "XA"
    lacks = is_at_end and not all(name in header for name in OF_PIXELS)
    if not kind or ends_short(header) or (lacks and (is_xa or modality == "missing")):
        raise NotACine("truncated", "in the header")
    if not is_xa:
        is_code = re.fullmatch("[A-Z]{2,8}|missing", modality)  # else it could say anything
        raise NotACine("not XA", f"modality {modality if is_code else 'unknown'}")
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if int(header.get("SamplesPerPixel", 1)) != 1 or not photometric.startswith("MONOCHROME"):
        raise NotACine("colour image")
    _check_syntax(header)


def _check_syntax(header: pydicom.Dataset) -> None:
    syntax = header.file_meta.TransferSyntaxUID
    if syntax == uid.JPEGExtended12Bit and int(header.BitsStored) > 8:
        raise NotACine("unsupported transfer syntax", "12-bit JPEG Extended")
    with suppress(NotImplementedError):
        if get_decoder(syntax).is_available:
            return
    name = syntax.name if syntax.name != syntax else "unknown or private"
    raise NotACine("unsupported transfer syntax", name)


def _typical(values: np.ndarray) -> float:
    """The mean, to the last digit if all are equal."""
    return float(values[0] if (values == values[0]).all() else values.mean())


def _describe(path: Path, film: Film) -> Cine:
    header = film.header
    video, exam = str(header.SOPInstanceUID), str(header.StudyInstanceUID)
    if not video or not exam:
        raise NotACine("broken header", "no SOP or study instance UID")
    return Cine(
        path,
        patient=str(header.get("PatientID", "") or "").strip() or exam,
        exam=exam,
        video=video,
        n_frames=film.n_frames,
        rows=int(header.Rows),
        columns=int(header.Columns),
        frame_time_ms=_typical(frame_steps_ms(header, film.n_frames)),
        primary_angle_deg=_typical(angles_deg(header, "Primary", film.n_frames)),
        secondary_angle_deg=_typical(angles_deg(header, "Secondary", film.n_frames)),
        spacing_mm=spacing_at_isocentre_mm(header),
        person=" ".join(str(header.get(n, "") or "") for n in ("PatientName", "PatientBirthDate")),
        issuer=str(header.get("IssuerOfPatientID", "") or "").strip(),
        is_cut=film.layout.is_cut,
        notes=frozenset(film.notes),
    )


def frame_steps_ms(header: pydicom.Dataset, n_frames: int) -> np.ndarray:
    """Return the time from each frame to the next, (n_frames - 1,) ms; NaN without any source.

    In order: FrameTime (after the vector, if the header points to that), FrameTimeVector, whose
    first step is always 0, the frames' own date and time (Enhanced XA; only what an angiograph can
    do, `MS`), CineRate, the recommended rate. A vector of another length gives its mean.

    Source:
        DICOM PS3.3 C.7.6.5 (Cine), C.7.6.16.2.2 (Frame Content).
    """
    time, vector = _number(header, "FrameTime"), np.zeros(0)
    with suppress(Exception):  # as in _number
        vector = numbers(header.get("FrameTimeVector"))[1:]
    has_steps = vector.size > 0 and vector.mean() > 0
    if has_steps and (header.get("FrameIncrementPointer") == VECTOR or not time > 0):
        return vector if len(vector) == n_frames - 1 else np.full(n_frames - 1, vector.mean())
    if not time > 0 and PER_FRAME in header:
        steps = np.diff([_seconds(header, i) for i in range(n_frames)]) * 1000
        if ((steps >= MS[0]) & (steps <= MS[1])).all():
            return steps
    for name in ("CineRate", "RecommendedDisplayFrameRate"):
        rate = _number(header, name)
        time = 1000 / rate if not time > 0 and rate > 0 else time
    return np.full(n_frames - 1, time if time > 0 else math.nan)


def _seconds(header: pydicom.Dataset, frame: int) -> float:
    for name in ("FrameReferenceDateTime", "FrameAcquisitionDateTime"):
        with suppress(ValueError, TypeError):
            return pydicom.valuerep.DT(find(header, name, frame)).timestamp()
    return math.nan


def angles_deg(header: pydicom.Dataset, kind: str, n_frames: int) -> np.ndarray:
    """Return the positioner's Primary or Secondary angle at each frame, (n_frames,) degrees.

    Per frame in Enhanced XA; of a turning C-arm, the first angle and its increments; NaN if there
    is none.
    """
    name = f"Positioner{kind}Angle"
    if PER_FRAME in header:
        told = [next(iter(numbers(find(header, name, i))), math.nan) for i in range(n_frames)]
        return np.array(told)
    angles = np.full(n_frames, _number(header, name))
    with suppress(Exception):  # as in _number
        steps = numbers(header.get(f"{name}Increment"))
        if len(steps) == n_frames:
            angles += steps
    return angles


def spacing_at_isocentre_mm(header: pydicom.Dataset) -> float:
    """Return the detector's pixel spacing divided by the magnification; NaN without either.

    Source:
        DICOM PS3.3 C.8.7.5 (Imager Pixel Spacing is at the detector's front plane).
    """
    magnification = _number(header, "EstimatedRadiographicMagnificationFactor")
    if not magnification > 0:
        to_detector = _number(header, "DistanceSourceToDetector")
        to_patient = _number(header, "DistanceSourceToPatient")
        magnification = to_detector / to_patient if to_patient > 0 else math.nan
    spacing = _number(header, "ImagerPixelSpacing")
    return spacing / magnification if spacing > 0 and magnification > 0 else math.nan


def _number(header: pydicom.Dataset, name: str) -> float:
    """A numeric attribute, its first value if there are several; NaN when it has none."""
    with suppress(Exception):  # pydicom raises nearly anything on text where a number belongs
        return next(iter(numbers(find(header, name))), math.nan)
    return math.nan


def name_view(primary_deg: float, secondary_deg: float) -> str:
    """Name a projection from the positioner angles in degrees, e.g. `LAO cranial`, `AP caudal`.

    LAO and cranial are positive; within 10 degrees counts as none.

    Source:
        DICOM PS3.3 C.8.7.5 (Positioner Primary and Secondary Angle) for the signs.
    """
    sideways = "AP" if abs(primary_deg) < 10 else ("LAO" if primary_deg > 0 else "RAO")
    tilt = "" if abs(secondary_deg) < 10 else (" cranial" if secondary_deg > 0 else " caudal")
    return sideways + tilt
