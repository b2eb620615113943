"""How soon a case of 200, each with a cine of 60 frames, stands on the desk with all its frames.

Run: `PYTHONPATH=. python tests/benchmarks/bench_desk.py` (needs chromium). Seconds on the wall,
from the key to the last frame decoded and drawn; frames drawn a second, of 15, while it plays.
"""

import json
import tempfile
from pathlib import Path
from time import perf_counter

from tests.desk.test_browser import CHROMIUM, LACKING, Page, Server, build_world

N_OPENED = 20


def main() -> dict[str, float]:
    """Return median and longest time of an opened case and the best rate; nothing if they lack."""
    if LACKING:
        return {}
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        server = Server(build_world(Path(name)), "label")
        page, times = Page(browser, server, "speed"), []
        page.wait("d.loaded === d.frames")
        for i in range(N_OPENED):
            began, drawn = perf_counter(), page.shown()["drawn"]
            page.press("n", f"{i + 2} / ")
            page.wait(f"Number(d.drawn) > {drawn} && d.loaded === d.frames")
            times.append(perf_counter() - began)
        page.page.keyboard.press("Space")
        rate = max(page.frame_rate() for _ in range(3))
        browser.close()
        server.process.terminate()  # its tables are of no interest
    return {
        "desk_opens_s": round(sorted(times)[N_OPENED // 2], 2),
        "desk_opens_longest_s": round(max(times), 2),
        "desk_frames_per_second": round(rate, 1),
    }


if __name__ == "__main__":
    print(json.dumps(main()))
