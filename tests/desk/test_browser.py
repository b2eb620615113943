"""The three desks in a real browser, with keys alone: `make test-desks`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate

from cag_utils.cines.dicom import path_within
from cag_utils.desk.__main__ import TOKEN
from cag_utils.desk.marks import read_marks
from cag_utils.profiles import load_profile
from cag_utils.scores.scorecard import blank_sheet
from cag_utils.study import data_dir
from tests.conftest import ROOT

CHROMIUM = shutil.which("chromium")
LACKING = [name for name in ("voila", "playwright") if not find_spec(name)]
LACKING += [] if CHROMIUM else ["chromium (apt-get install chromium)"]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}"),
]
N_CASES, N_FRAMES, N_FILES = 200, 60, 2
PATIENCE_MS = 120_000  # a hang, not a speed, is what this guards against
SHOTS = os.environ.get("CAG_SCREENSHOTS")  # a folder, to look at them


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build_world(tmp_path_factory.mktemp("root"))


def build_world(root: Path) -> Path:
    """A root with 200 cines of 60 frames, drafts, reports and a blinded sheet of two models."""
    (root / "notebooks").symlink_to(ROOT / "notebooks")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:512, :512]
    stills = []
    for k in range(N_FILES):
        disc = [np.hypot(rows - 256, columns - 100 - 5 * i) < 40 + 9 * k for i in range(N_FRAMES)]
        cine = (140 - 70 * np.array(disc) + rng.integers(0, 40, (1, 512, 512))).astype(np.uint8)
        write_cine(root / f"{k}.dcm", cine, f"1.2.3.{k}")
        stills.append(cine[30])
    videos = [f"vi-{i:012x}" for i in range(N_CASES)]
    folder = path_within(root, Path(root.anchor))  # as notebook 00 writes it
    links = pd.DataFrame({"video_id": videos, "folder": folder, "reason": ""})
    links["path"] = [f"{i % N_FILES}.dcm" for i in range(N_CASES)]
    (root / "data" / "private").mkdir(parents=True)
    frames = pd.DataFrame({"video_id": videos, "frame": 30, "n_frames": N_FRAMES})
    frames["exam_id"] = [f"ex-{i // 2:012x}" for i in range(N_CASES)]
    frames = frames.assign(frame_time_ms=66.7, png=[f"{i % N_FILES}.png" for i in range(N_CASES)])
    for cohort in ("cnn", "corpus"):
        links.to_csv(root / "data" / "private" / f"smoke_{cohort}_links.csv", index=False)
        folder = root / "outputs" / "smoke" / "00_frame_sampling" / cohort
        folder.mkdir(parents=True)
        frames.to_csv(folder / "frames.csv", index=False)
        for k, still in enumerate(stills):
            cv2.imwrite(str(folder / f"{k}.png"), still)
    write_texts(root, frames.head(5))
    return root


def write_cine(path: Path, cine: np.ndarray, uid_: str) -> None:
    """An XA cine, (T, H, W) uint8, in JPEG Baseline."""
    coded = [cv2.imencode(".jpg", frame)[1].tobytes() for frame in cine]
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    header.SOPClassUID, header.SOPInstanceUID = uid.XRayAngiographicImageStorage, uid_
    header.StudyInstanceUID, header.PatientID, header.Modality = "1.2.3", "P1", "XA"
    header.NumberOfFrames, header.Rows, header.Columns = cine.shape
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 8, 8, 7, 0
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.FrameTime, header.PixelData = 66.7, encapsulate(coded)
    header["PixelData"].is_undefined_length = True
    header.save_as(path, enforce_file_format=True)


def write_texts(root: Path, frames: pd.DataFrame) -> None:
    """Reports, drafts, pairs and two models' answers on five cines."""
    true = "RCA #2に75%の狭窄が確認できます。PCIを検討してください。"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAG_ROOT", str(root))
        folder = data_dir(load_profile("smoke")) / "corpus"
    folder.mkdir(parents=True)
    reports = frames[["exam_id"]].drop_duplicates().rename(columns={"exam_id": "exam"})
    reports = reports.assign(report_ja="63M。労作時胸痛。", report_en="63M. Angina.")
    reports.to_csv(folder / "reports.csv", index=False)
    findings = frames[["video_id"]].rename(columns={"video_id": "video"}).assign(frame="")
    findings = findings.assign(findings_ja=true, findings_en="", validated_by="draft")
    findings.to_csv(folder / "findings.csv", index=False)
    pairs = frames.assign(case_id=[f"case-{i:04d}" for i in range(5)], confidence=0.9)
    pairs = pairs.assign(patient_id=pairs["exam_id"], laterality="RCA", truth_laterality="RCA")
    pairs["png"] = "00_frame_sampling/corpus/" + pairs["png"]
    out = root / "outputs" / "smoke"
    corpus = out / "03_build_corpus" / "all"
    corpus.mkdir(parents=True)
    pairs.drop(columns=["n_frames", "frame_time_ms"]).to_csv(corpus / "pairs.csv", index=False)
    answers = pd.concat([pairs[["case_id"]].assign(model=m, output=f"{m}: {true}") for m in "xy"])
    answers = answers.assign(output=true, ground_truth=true, report="63M。")
    sheet, key = blank_sheet(answers, 0)
    scored = out / "07_physician_scores" / "ja"
    scored.mkdir(parents=True)
    sheet.to_csv(scored / "blank_sheet.csv", index=False, encoding="utf-8-sig")
    key.to_csv(scored / f"blank_sheet_key_{key['code'].iloc[0][2:]}.csv", index=False)
    marks = answers[["case_id", "model"]].assign(reader="rubric", overall=10)
    marks.to_csv(scored / "scores.csv", index=False)


class Server:
    """A desk's command, started as a person would; a browser's page on it."""

    def __init__(self, world: Path, desk: str, *options: str, port: int = 0):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = port or free.getsockname()[1]
        command = [sys.executable, "-m", "cag_utils.desk", desk, "-p", "profile", "smoke"]
        command += ["--port", str(self.port), "--no-browser", *options]
        env = os.environ | {"CAG_ROOT": str(world), TOKEN: "secret"}
        self.log = (world / f"{desk}.log").open("ab")
        self.process = subprocess.Popen(command, env=env, stdout=self.log, stderr=self.log)
        self.address = f"http://127.0.0.1:{self.port}/"
        until = time.monotonic() + 90
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(self.address, timeout=5) as answer:
                    assert "/login" in answer.url  # whoever has no token gets no further
                return
            except OSError:
                time.sleep(0.2)
        pytest.fail("the desk does not answer")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(120)
        self.log.close()


class Page:
    """What a reader does: opens, types, looks."""

    def __init__(self, browser, server: Server, reader: str, **options):
        settings = {"viewport": {"width": 1280, "height": 720}, "locale": "en-US"} | options
        self.page = browser.new_context(**settings).new_page()
        self.answered = []
        self.page.on("requestfinished", lambda request: self.answered.append(request.url))
        self.page.set_default_timeout(PATIENCE_MS)
        self.start(server, reader)

    def start(self, server: Server, reader: str) -> None:
        self.page.goto(f"{server.address}?token=secret", wait_until="commit")
        self.page.wait_for_selector("input[name=reader]")
        self.page.fill("input[name=reader]", reader)
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector(".desk-counts, .desk-problem:not(:empty)")

    def text(self, part: str) -> str:
        return self.page.inner_text(part)

    def wait(self, condition: str) -> None:
        script = "() => { const d = document.querySelector('.desk-picture').dataset; return C }"
        self.page.wait_for_function(script.replace("C", condition))

    def wait_for_status(self, text: str) -> None:
        bar = "document.querySelector('.desk-saved').textContent"
        self.page.wait_for_function(f"text => {bar}.includes(text)", arg=text)

    def shown(self) -> dict:
        """What the picture's element says of itself, numbers."""
        found = self.page.evaluate("({...document.querySelector('.desk-picture').dataset})")
        return {name: int(value) for name, value in found.items()}

    def frame_rate(self) -> float:
        """Frames that are drawn in a second, seen for two."""
        before, began = self.shown()["drawn"], time.monotonic()
        time.sleep(2)
        return (self.shown()["drawn"] - before) / (time.monotonic() - began)

    def press(self, keys: str, text: str) -> None:
        """Press keys and wait until the bar of counts holds a text."""
        for key in keys.split():
            self.page.keyboard.press(key)
        bar = "document.querySelector('.desk-counts').textContent"
        self.page.wait_for_function(f"text => {bar}.includes(text)", arg=text)

    def shoot(self, name: str) -> None:
        if SHOTS:
            self.page.screenshot(path=Path(SHOTS) / f"{name}.png")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


def test_ten_frames_are_labelled_with_keys_and_a_killed_server_loses_none(world, browser):
    server = Server(world, "label")
    page = Page(browser, server, "ab")
    here = (server.address, "data:", "blob:")
    assert {url for url in page.answered if not url.startswith(here)} == set()
    page.wait("d.loaded === d.frames")
    assert page.shown()["frames"] == N_FRAMES and page.shown()["frame"] == 30
    page.page.keyboard.press("ArrowRight")
    assert page.shown()["frame"] == 31
    page.page.keyboard.press("Home")
    page.page.keyboard.press("Space")  # it plays, and loops
    assert 0 < page.frame_rate() <= 20  # of 15 a second; a little more where it catches up
    page.page.keyboard.press("Space")
    for i in range(6):
        page.press(str(i % 7), f" {i + 1} marked")
    page.press("u", " 5 marked")  # the last one was a slip
    page.press("2", " 6 marked")
    sheet = world / "data" / "readers" / "smoke" / "label" / "AB.csv"
    second = Page(browser, server, "AB")
    assert "open in another window" in second.text(".desk-problem")
    second.page.close()
    other = Page(browser, server, "ZZ")  # who reads beside him sees and marks his own
    other.press("1", " 1 marked")
    other.page.close()
    os.kill(server.process.pid, signal.SIGKILL)
    page.page.keyboard.press("1")
    page.wait_for_status("NOT SAVED")
    assert len(read_marks(sheet)) == 6
    server = Server(world, "label", port=server.port)
    page.start(server, "ab")
    page.press("3", " 7 marked")
    for i in range(7, 10):
        page.press("5", f" {i + 1} marked")
    labels = read_marks(sheet)["label"].tolist()
    first = ["unsure", "LCA_better", "LCA_bad", "LCA_other", "RCA_better", "LCA_bad", "LCA_other"]
    assert labels == [*first, *["RCA_bad"] * 3]
    assert sheet.read_text(encoding="utf-8").count("undo") == 1
    page.page.close()
    server.stop()  # and it writes its tables
    out = world / "outputs" / "smoke" / "A9_label_frames" / "all"
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert (found["readers"], found["marks"], found["unsure"]) == (2, 11, 1)
    assert len(pd.read_csv(out / "frame_labels.csv")) == 10


@pytest.mark.parametrize("desk", ["label", "validate", "review"])
def test_the_desk_fits_a_laptop_and_a_tablet_in_light_and_dark(world, browser, desk):
    server = Server(world, desk)
    page = Page(browser, server, "looks")
    page.wait("d.loaded === d.frames")
    for scheme, width, height in product(("light", "dark"), (1280, 1024, 820), (720,)):
        page.page.emulate_media(color_scheme=scheme)
        page.page.set_viewport_size({"width": width, "height": height})
        page.shoot(f"{desk}_{scheme}_{width}")
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    page.page.close()
    server.stop()


def test_three_findings_are_validated_one_of_them_edited(world, browser):
    server = Server(world, "validate")
    page = Page(browser, server, "cd", locale="ja-JP")
    assert "術前レポート" in page.text(".desk-texts") and "63M" in page.text(".desk-texts")
    page.press("a", "1 件記入")
    page.page.keyboard.press("e")
    page.page.keyboard.press("Control+A")
    page.page.keyboard.insert_text("LAD #6に60%の狭窄が確認できます。")
    page.page.wait_for_selector("[data-field=findings_ja] .desk-hints li >> nth=1")
    page.shoot("validate_light_1280")
    assert "60％" in page.text("[data-field=findings_ja] .desk-hints")
    page.page.keyboard.press("Escape")
    page.press("a", "2 件記入")  # a hint blocks nothing
    page.press("r", "3 件記入")
    page.page.close()
    server.stop()
    verdicts = pd.read_csv(world / "outputs/smoke/A10_validate_findings/all/verdicts.csv")
    assert verdicts["verdict"].tolist() == ["accept", "edit", "reject"]
    passed = pd.read_csv(world / "outputs/smoke/A10_validate_findings/all/findings.csv")
    assert list(passed["validated_by"]) == ["CD"] * 2
    assert passed["findings_ja"].str.contains("#6").sum() == 1


def test_six_answers_are_reviewed_blind(world, browser):
    server = Server(world, "review")
    tablet = {"viewport": {"width": 1180, "height": 820}, "color_scheme": "dark", "has_touch": True}
    page = Page(browser, server, "ef", **tablet)
    seen = page.page.content()
    page.page.keyboard.press("Enter")  # no score yet: it is asked for
    page.wait_for_status("Overall")
    for i, keys in enumerate(("7 a", "t", "0 a a g", "3", "5 s d f", "8")):
        page.press(f"{keys} Enter", f" {i + 1} marked")
        seen += page.page.content()
        page.shoot(f"review_{i}")
    assert "3 / 5 whole cases" in page.text(".desk-counts")
    assert "lora" not in seen and "case-00" not in seen and "正解" not in seen
    page.page.close()
    server.stop()
    folder = world / "outputs" / "smoke" / "A11_review_reports" / "ja"
    sheet = pd.read_csv(folder / "sheet.csv", encoding="utf-8-sig")
    assert sheet["overall"].tolist() == [7, 10, 0, 3, 5, 8]
    assert sheet["laterality_error"].tolist() == [1, 0, 0, 0, 0, 0]
    assert sheet["stenosis_error"].tolist() == [0, 0, 1, 0, 0, 0]
    assert not (folder / "means_by_model.csv").exists()  # the code stays closed
