"""`python -m cag_utils.desk label|validate|review`: a desk as a page, for this machine alone."""

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import webbrowser
from pathlib import Path

from cag_utils.study import root

# Voila's template asks a CDN for an icon font; a page that shows patients asks nobody.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws: wss:"
TOKEN = "CAG_DESK_TOKEN"  # in the environment: the same token at each start; else a new one
DESKS = {
    "label": "A9_label_frames",
    "validate": "A10_validate_findings",
    "review": "A11_review_reports",
}


def main() -> None:
    """Open a desk's notebook through Voila; when it is stopped, write its tables once more.

    The notebook runs with the parameters given, as papermill sets them. The page answers on the
    loopback address alone, and only to whoever has the token.
    """
    parser = argparse.ArgumentParser(prog="python -m cag_utils.desk", description=main.__doc__)
    parser.add_argument("desk", choices=DESKS)
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--port", type=int, default=8866)
    parser.add_argument("--base-url", default="/", help="behind a login: the proxy's path, /desk/")
    parser.add_argument("--no-browser", action="store_true")
    given = parser.parse_args()
    notebook = root() / "notebooks" / f"{DESKS[given.desk]}.ipynb"
    options = [word for name, value in given.p for word in ("-p", name, value)]
    run = [sys.executable, "-m", "cag_utils.workflow", "notebook", str(notebook)]
    options += ["--no-progress-bar", "--log-level", "ERROR", "--cwd", str(notebook.parent)]
    with tempfile.TemporaryDirectory() as folder:
        prepared, done = Path(folder) / notebook.name, Path(folder) / "done.ipynb"
        subprocess.run([*run, str(prepared), *options, "--prepare-only"], check=True)
        _serve(prepared, given)
        subprocess.run([*run, str(done), *options], check=True)


def _serve(prepared: Path, given: argparse.Namespace) -> None:
    """Run Voila until Ctrl-C, in this process: a token on a command line would show in `ps`."""
    import zmq
    from traitlets.config import Config
    from voila.app import Voila

    token = os.environ.get(TOKEN) or secrets.token_urlsafe(18)
    link = f"http://127.0.0.1:{given.port}{given.base_url}?token={token}"
    print(f"\n  {given.desk}: {link}\n  Ctrl-C ends it and writes the tables.\n", flush=True)
    if not given.no_browser:
        threading.Timer(3, webbrowser.open, [link]).start()  # when it answers
    settings = {"ip": "127.0.0.1", "port": given.port, "base_url": given.base_url, "token": token}
    settings |= {"open_browser": False, "log_level": "ERROR"}
    # the ping's default timeout is above its interval, which tornado complains about at each start
    pages = {"headers": {"Content-Security-Policy": POLICY}, "ws_ping_timeout": 30_000}
    settings["tornado_settings"] = pages
    page = {"show_tracebacks": True, "file_allowlist": []}
    kernel = {"transport_encryption": "auto" if zmq.has("curve") else "disabled"}
    config = Config({"Voila": settings, "VoilaConfiguration": page, "KernelManager": kernel})
    Voila.launch_instance([str(prepared)], config=config)


if __name__ == "__main__":
    main()
