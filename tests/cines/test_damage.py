"""Every kind of damage, and of what else archives hold: each file is read, listed or counted."""

import os
import random
import struct
import time
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate, encapsulate_extended

from cag_utils.cines.dicom import iter_frames, scan
from cag_utils.cines.reasons import NOTES, REASONS
from cag_utils.cines.sampling import sample_folder
from tests.cines.test_dicom import write_cine
from tests.cines.test_sampling import KEY, pulsing
from tests.conftest import ROOT

CASES = Path(os.environ.get("CAG_CASES", ROOT.parent / "shared" / "cases"))
FILM = np.kron(pulsing(), np.ones((4, 4), np.uint8))  # 24 x 24 x 32
JPEGS = [cv2.imencode(".jpg", frame)[1].tobytes() for frame in FILM]
JPEGS = [x + b"\0" * (len(x) % 2) for x in JPEGS]
START = b"\xfe\xff\x00\xe0"


def jpeg(data=None, syntax=uid.JPEGBaseline8Bit, **changes):
    """What makes a cine with encapsulated pixels, those of `JPEGS` if none are given."""

    def make(path):
        dataset = pydicom.dcmread(raw()(path))
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate(JPEGS) if data is None else data
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        for name, value in changes.items():
            delattr(dataset, name) if value is None else setattr(dataset, name, value)
        dataset.save_as(path, implicit_vr=False, little_endian=True)
        return path

    return make


def raw(change=None, **changes):
    """What makes an uncompressed cine of `FILM`; `change` is done to its bytes."""

    def make(path):
        write_cine(path, FILM, video=f"1.2.{zlib.crc32(bytes(path))}", **changes)
        if change:
            path.write_bytes(change(path.read_bytes()))
        return path

    return make


def items(*parts, end=True):
    ends = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0) if end else b""
    return b"".join(START + struct.pack("<L", len(part)) + part for part in (b"", *parts)) + ends


def halves(frames):
    return [half for x in frames for half in (x[: len(x) // 4 * 2], x[len(x) // 4 * 2 :])]


def fifth(frame):
    """All frames, but this for number 5."""
    return items(*JPEGS[:5], frame, *JPEGS[6:])


def retagged(element, value):
    """A change of the value of an element of VR US."""

    def change(data):
        at = data.index(element) + 8
        return data[:at] + struct.pack("<H", value) + data[at + 2 :]

    return change


def replaced(old, new):
    return lambda data: data.replace(old, new, 1)


def written(content):
    return lambda path: path.write_bytes(content)


ROWS, PLAIN, N_24 = b"\x28\0\x10\0US", b"1.2.840.10008.1.2.1\0", b"IS\2\x0024"
TABLE, SMALL = encapsulate(JPEGS), cv2.imencode(".jpg", FILM[0][:16])[1].tobytes()
EXTENDED = dict(
    zip(
        ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
        encapsulate_extended(JPEGS)[1:],
        strict=True,
    )
)
NONSENSE = {name: value[::-1] for name, value in EXTENDED.items()}
SIZE = FILM[0].size
ZEROS_BEHIND, UNSUPPORTED = FILM[:20].tobytes() + bytes(9 * SIZE), "unsupported transfer syntax"
TWELVE_BITS = {"BitsAllocated": 16, "BitsStored": 12}
BROKEN, SAYS = "broken pixel data", "pixels are not what the header says"


def cut_jpeg(path):
    """A cine that ends within its frame 20."""
    path.write_bytes(jpeg()(path).read_bytes()[: -sum(map(len, JPEGS[20:]))])


def bomb(data):
    """The file's header, said to be deflated, before a quarter of a gigabyte in 260 kB."""
    long = data.replace(b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x001.2.840.10008.1.2.1.99", 1)
    start = long.index(b"\x08\0\x16\0UI")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = deflate.compress(long[start:]) + deflate.flush(zlib.Z_FULL_FLUSH)
    return long[:start] + head + zlib.compress(bytes(2**28 + 1), 9)[2:-4]


# name: how it is made, how many frames are read, and the reason of the others, or of the file
KINDS = {
    "whole": (raw(), 24, None),
    "jpeg": (jpeg(), 24, None),
    "no offset table": (jpeg(items(*JPEGS)), 24, None),
    "extended table": (jpeg(items(*JPEGS), **EXTENDED), 24, None),
    "extended table of nonsense": (jpeg(items(*halves(JPEGS)), **NONSENSE), 24, None),
    "two fragments a frame": (jpeg(items(*halves(JPEGS))), 24, None),
    "two fragments, table": (jpeg(encapsulate(JPEGS, fragments_per_frame=2)), 24, None),
    "all in one fragment": (jpeg(items(b"".join(JPEGS))), 24, None),
    "empty fragments": (jpeg(items(*(part for x in JPEGS for part in (x, b"")))), 24, None),
    "no delimiter": (jpeg(items(*JPEGS, end=False)), 24, None),
    "table of zeros": (jpeg(TABLE[:8] + bytes(96) + TABLE[104:]), 24, None),
    "too few announced": (jpeg(NumberOfFrames=10), 24, None),
    "too few announced, raw": (raw(NumberOfFrames=10), 24, None),
    "zeros behind": (raw(NumberOfFrames=20, PixelData=ZEROS_BEHIND), 20, None),
    "number missing": (jpeg(NumberOfFrames=None), 24, None),
    "number no number": (raw(replaced(N_24, b"IS\2\0ab")), 24, None),
    "too many announced": (jpeg(NumberOfFrames=27), 24, "missing frame"),
    "a frame empty": (jpeg(fifth(b"\0\0")), 23, "blank frame"),
    "a frame of rubbish": (jpeg(fifth(b"rubbish?")), 23, BROKEN),
    "a frame of another size": (jpeg(fifth(SMALL + b"\0" * (len(SMALL) % 2))), 23, BROKEN),
    "a frame cut": (jpeg(fifth(JPEGS[5][: len(JPEGS[5]) // 4 * 2])), 23, BROKEN),
    "zero-filled tail": (raw(lambda b: b[: -SIZE * 4] + bytes(SIZE * 4)), 20, "blank frame"),
    "cut": (raw(lambda b: b[: -SIZE * 4 - 9]), 19, "truncated"),
    "cut jpeg": (cut_jpeg, 20, "truncated"),
    "cut before the pixels": (raw(lambda b: b[: -FILM.size - 12]), 0, "no pixel data"),
    "cut where they begin": (raw(lambda b: b[: -FILM.size - 5]), 0, "truncated"),
    "cut in the header": (raw(lambda b: b[:450]), 0, "truncated"),
    "cut in the file header": (raw(lambda b: b[:150]), 0, "truncated"),
    "no preamble": (raw(lambda b: b[132:]), 24, None),
    "no file header": (raw(lambda b: b[b.index(b"\x08\0\x16\0UI") :]), 24, None),
    "compressed, said raw": (jpeg(syntax=uid.ExplicitVRLittleEndian), 0, SAYS),
    "raw, said compressed": (raw(replaced(PLAIN, b"1.2.840.10008.1.2.5\0")), 0, SAYS),
    "JPEG, said JPEG 2000": (jpeg(syntax=uid.JPEG2000), 24, None),
    "12-bit JPEG Extended": (jpeg(syntax=uid.JPEGExtended12Bit, **TWELVE_BITS), 0, UNSUPPORTED),
    "MPEG-4": (jpeg(syntax=uid.MPEG4HP41), 0, UNSUPPORTED),
    "rows of 65500": (raw(retagged(ROWS, 65500), Columns=65500), 0, "too large"),
    "no rows": (raw(retagged(ROWS, 0)), 0, "broken header"),
    "frames of 60 digits": (raw(replaced(N_24, b"IS\x3c\0" + b"9" * 60)), 0, "broken header"),
    "99999999 frames": (raw(NumberOfFrames=99_999_999), 0, "broken header"),
    "black": (raw(PixelData=bytes(FILM.size)), 0, "blank frame"),
    "white": (raw(PixelData=b"\xff" * FILM.size), 0, "no picture"),
    "deflated bomb": (raw(bomb), 0, "too large"),
    "a letter": (written(b"Dear colleague " * 20), 0, "not a DICOM file"),
    "empty": (written(b""), 0, "empty file"),
    "zeros": (written(bytes(5000)), 0, "not a DICOM file"),
    "Thumbs.db": (written(b"x"), 0, "passed over"),
    "a.pdf": (written(b"%PDF-1.4 ..."), 0, "passed over"),
    "a report": (raw(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"), 0, "passed over"),
}  # fmt: skip


def test_every_kind_is_read_listed_or_counted(tmp_path):
    assert len(KINDS) >= 40
    for name, (make, _, _) in KINDS.items():
        make(tmp_path / name)
    got = sample_folder(tmp_path, tmp_path.parent / "out", KEY, n_workers=2)
    links = got.links.drop_duplicates("file_id").set_index("file_id")["path"]
    assert sorted(links) == sorted(KINDS)
    cines = got.links.dropna(subset=["video_id"]).set_index("video_id")["path"]
    n_good = got.statistics.groupby("video_id").size()
    n_good.index = n_good.index.map(cines)
    rejected = got.rejected.assign(path=got.rejected["file_id"].map(links))
    whole = rejected[rejected["frame"].isna()]
    assert len(got.videos) + len(whole) == len(KINDS) and whole["path"].is_unique
    assert set(rejected["reason"]) <= set(REASONS)
    assert set("; ".join(got.videos["notes"]).split("; ")) - {""} <= set(NOTES)
    for name, (_, n_frames, reason) in KINDS.items():
        reasons = set(rejected.loc[rejected["path"] == name, "reason"])
        assert reasons == ({reason} if reason else set()), name
        assert n_good.get(name, 0) == n_frames, name
    lost = rejected[rejected["path"] == "a frame of rubbish"]
    assert lost["frame"].tolist() == [5] and not lost["words"].str.contains("rubbish").any()
    [video] = cines[cines == "a frame of rubbish"].index
    curve = got.statistics[got.statistics["video_id"] == video].set_index("frame")["mean"]
    assert 5 not in curve.index and curve[6] == pytest.approx(FILM[6].mean(), abs=1)  # true numbers


def test_the_frames_are_those_of_the_file(tmp_path):
    for name in ("two fragments a frame", "all in one fragment", "extended table of nonsense"):
        KINDS[name][0](tmp_path / "a")
        frames = np.stack(list(iter_frames(tmp_path / "a")))
        assert np.abs(frames.astype(int) - FILM).mean() < 3, name


def test_zips_copies_and_shared_ids(tmp_path):
    whole = write_cine(tmp_path / "a.dcm", FILM, video="1.7", PatientName="A^B").read_bytes()
    (tmp_path / "b.dcm").write_bytes(whole)  # a duplicate
    (tmp_path / "c.dcm").write_bytes(whole[:-2000])  # a cut copy
    write_cine(tmp_path / "d.dcm", 255 - FILM, video="1.8", PatientID="P2")
    write_cine(tmp_path / "e.dcm", FILM, video="1.8", PatientID="P2", IssuerOfPatientID="north")
    write_cine(tmp_path / "f.dcm", FILM, video="1.9", PatientID="P2", IssuerOfPatientID="south")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(write_cine(tmp_path / "x", FILM[::-1], video="1.10"), "deep/er/g.dcm")
        archive.writestr("note.txt", "no image")
    (tmp_path / "x").unlink()
    (tmp_path / "broken.zip").write_bytes(b"PK")
    cines, rejected = scan(tmp_path)
    found = {c.path.relative_to(tmp_path).as_posix(): c for c in cines}
    assert sorted(found) == ["a.dcm", "d.dcm", "e.dcm", "f.dcm", "more.zip/deep/er/g.dcm"]
    reasons = {r.path.relative_to(tmp_path).as_posix(): r.reason for r in rejected}
    assert reasons == {
        "b.dcm": "duplicate", "c.dcm": "duplicate", "more.zip/note.txt": "not a DICOM file",
        "broken.zip": "not a DICOM file",
    }  # fmt: skip
    assert found["a.dcm"].copies == (tmp_path / "b.dcm", tmp_path / "c.dcm")
    assert len({c.video for c in cines}) == 5 and found["a.dcm"].video == "1.7"
    assert "one UID, several contents" in found["d.dcm"].notes & found["e.dcm"].notes
    assert len({found[name].patient for name in ("d.dcm", "e.dcm", "f.dcm")}) == 3
    assert "one study in two patients" in found["a.dcm"].notes
    assert (
        sample_folder(tmp_path, tmp_path.parent / "out", KEY).videos["n_frames"].tolist()
        == [24] * 5
    )


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases at {CASES}: set CAG_CASES")
def test_decoders_that_die_and_bombs_cost_their_files(tmp_path):
    got = sample_folder(CASES / "damage", tmp_path, KEY, n_workers=2)
    names = got.links.drop_duplicates("file_id").set_index("path")["reason"]
    for name, reason in names.items():
        kind = name.split("_")[0]
        want = {"bomb": "too large", "jpeg": "too large", "gdcm": "the decoder died"}
        assert kind == "cut" or reason == want.get(kind, "broken header"), name
    assert len(got.videos) == 1 and len(names) == 9


@pytest.mark.fuzz
def test_a_minute_of_mutations_stops_nothing(tmp_path):
    """Files of every kind with bytes changed at random, seed 0, for 60 s: all are accounted for."""
    rng, ends = random.Random(0), time.monotonic() + 60
    makers = [make for make, n, _ in KINDS.values() if n == 24]
    sources = [*(CASES / "damage").glob("gdcm*")]
    while time.monotonic() < ends:
        folder = tmp_path / str(rng.random())
        folder.mkdir()
        for i in range(60):
            path = folder / str(i)
            if i % 4 or not sources:
                rng.choice(makers)(path)
            else:
                path.write_bytes(rng.choice(sources).read_bytes())
            data = bytearray(path.read_bytes())
            for _ in range(rng.choice([1, 3, 30])):
                data[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(data[: rng.randrange(len(data)) if i % 5 == 0 else None])
        got = sample_folder(folder, tmp_path / "out", KEY, n_workers=2)
        n_whole = got.rejected["frame"].isna().sum()
        assert len(got.videos) + n_whole == got.links["file_id"].nunique() == 60
        assert set(got.rejected["reason"]) <= set(REASONS)
