"""Published weights: whether they can be had, are here, and which commit they are."""

import json
import pickle
import shutil
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cag_utils import hub
from cag_utils.hub import check_access, is_here, resolved_commit
from cag_utils.scores.embedders import EMBEDDERS

COMMIT = "0123456789abcdef" * 2 + "01234567"
NOWHERE = hub.Checkpoint("nobody/nothing", "main", "https://huggingface.co/nobody", "gemma3")


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub that answers every request with the status and the code set on it."""
    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):  # noqa: N802 - the name http.server calls
            self.send_response(found.status)
            self.send_header("X-Error-Code", found.code)
            self.end_headers()

        def log_message(self, *_):
            """Keep the test's output clean."""

    found = HTTPServer(("127.0.0.1", 0), Hub)
    found.status, found.code, found.url = 200, "", f"http://127.0.0.1:{found.server_port}"
    threading.Thread(target=lambda: found.serve_forever(0.01), daemon=True).start()
    yield found
    found.shutdown()


@pytest.mark.parametrize("status, code, error, match", [
    (401, "GatedRepo", PermissionError, "gated .401"),
    (403, "", PermissionError, "gated .403"),
    (404, "RevisionNotFound", ConnectionError, "answered 404 for revision main"),
    (500, "", ConnectionError, "answered 500 for revision main"),
])  # fmt: skip
def test_missing_weights_are_told_at_once_with_the_way_out(status, code, error, match, server):
    server.status, server.code = status, code
    for source in (NOWHERE, *(entry.checkpoint for entry in EMBEDDERS.values())):
        with pytest.raises(error, match=match) as caught:
            check_access(replace(source, repo="nobody/nothing"), server.url)
        for part in (source.licence_url, source.command, "size tiny", repr(source.twin)):
            assert part in str(caught.value)


def test_an_open_checkpoint_passes_and_no_hub_at_all_or_offline_mode_is_said(server, monkeypatch):
    check_access(NOWHERE, server.url)
    server.status, server.code = 404, "EntryNotFound"  # of the file that is asked for
    check_access(NOWHERE, server.url)
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="did not answer(.|\n)*hf auth login"):
        check_access(NOWHERE, "http://127.0.0.1:9")  # the discard port: nobody listens
    assert time.monotonic() - began < 10
    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        check_access(NOWHERE, server.url)
    assert not is_here(NOWHERE)


def lay(cache: Path, repo: str, **files: str) -> Path:
    """Lay files into a hub cache, as a download of the main branch would; return the snapshot."""
    at = cache / f"models--{repo.replace('/', '--')}"
    (at / "snapshots" / COMMIT).mkdir(parents=True)
    (at / "refs").mkdir()
    (at / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    for name, text in files.items():
        (at / "snapshots" / COMMIT / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return at / "snapshots" / COMMIT


def test_a_cached_checkpoint_needs_no_hub_and_all_parts_of_its_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = lay(tmp_path, "nobody/nothing", config__json="{}")
    check_access(NOWHERE, "http://127.0.0.1:9")
    assert not is_here(NOWHERE)  # the configuration alone
    parts = {name: f"model-0000{i}-of-00002.safetensors" for i, name in ((1, "a"), (2, "b"))}
    index = json.dumps({"weight_map": parts})
    (snapshot / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    (snapshot / parts["a"]).touch()
    assert not is_here(NOWHERE)
    (snapshot / parts["b"]).touch()
    assert is_here(NOWHERE)
    lay(tmp_path, "nobody/whole", model__safetensors="")
    assert is_here(replace(NOWHERE, repo="nobody/whole"))
    assert resolved_commit("nobody/nothing") == COMMIT
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        resolved_commit("nobody/other")
    (snapshot / parts["b"]).unlink()  # a snapshot known to be partial still names its commit

    def partial(*_, **__):
        raise hub.errors.IncompleteSnapshotError("one file is missing", snapshot_path=str(snapshot))

    monkeypatch.setattr(hub, "snapshot_download", partial)
    assert resolved_commit("nobody/nothing") == COMMIT and not is_here(NOWHERE)


def test_a_folder_is_here_and_its_commit_follows_its_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    own = hub.override(NOWHERE, str(tmp_path))
    check_access(own, "http://127.0.0.1:9")
    assert is_here(own) and not own.gated
    first = resolved_commit(own.repo)
    shutil.copytree(tmp_path, copy := tmp_path / "copy")
    assert first == resolved_commit(str(copy)) and first.startswith("sha256:")
    (copy / "model.safetensors").write_bytes(b"other")
    assert resolved_commit(str(copy)) != first


def test_a_registry_entry_and_a_tower_can_be_pointed_elsewhere(monkeypatch, tmp_path):
    assert hub.override(NOWHERE, "") == NOWHERE
    assert hub.override(NOWHERE, "nobody/nothing@v2") == replace(NOWHERE, revision="v2")
    found = hub.override(NOWHERE, "some/other")
    assert (found.repo, found.revision, found.twin) == ("some/other", "main", "gemma3")
    for source in ("/no/such/folder", "gemma", "./a/b"):
        with pytest.raises(FileNotFoundError, match="neither a folder nor owner/name"):
            hub.override(NOWHERE, source)
    assert hub.fetch_weights(str(tmp_path)) == tmp_path

    def download(repo, name, revision):
        assert (name, revision) == ("model.safetensors", "main")
        if repo == "a/pickle":
            raise hub.errors.EntryNotFoundError("not there")
        return f"/cache/{name}"

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert hub.fetch_weights("a/b", "main").name == "model.safetensors"
    with pytest.raises(FileNotFoundError, match="A .bin is a pickle"):
        hub.fetch_weights("a/pickle", "main")


def test_files_are_safetensors_whole_or_in_parts(tmp_path):
    with pytest.raises(FileNotFoundError, match="A .bin is a pickle"):
        hub.read_safetensors(tmp_path)
    torch.save({"a": torch.arange(3.0)}, tmp_path / "pytorch_model.bin")
    for pickled in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(FileNotFoundError, match="convert it once"):
            hub.read_safetensors(pickled)
        assert hub.read_state(pickled)["a"].tolist() == [0, 1, 2]  # MedCLIP's, no code run
    save_file({"b": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"c": torch.ones(3)}, tmp_path / "model-00002-of-00002.safetensors")
    assert sorted(hub.read_safetensors(tmp_path)) == ["b", "c"]
    save_file({"d": torch.ones(2)}, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert list(hub.read_safetensors(path)) == list(hub.read_state(path)) == ["d"]


def test_a_bin_that_holds_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        torch.save({"a": Bomb()}, file)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        hub.read_state(tmp_path)
    assert not (tmp_path / "ran").exists()
