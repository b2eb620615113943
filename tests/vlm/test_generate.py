"""Generation: prompts, statuses and tables, nothing dropped; the endpoint is asked with care."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import traceback
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from cag_utils.corpus.examples import encode_prompts, open_picture
from cag_utils.corpus.pairs import prompt
from cag_utils.making.twins import make_processor
from cag_utils.phantom.clinic.findings import PLANS, write_findings
from cag_utils.phantom.clinic.notes import write_report
from cag_utils.phantom.clinic.patients import draw_record
from cag_utils.vlm import endpoint, generate
from cag_utils.vlm.endpoint import Endpoint, EndpointError, ask
from cag_utils.vlm.generate import answer_status, generate_answers, generation_table
from cag_utils.vlm.loading import load_backbone
from cag_utils.vlm.sft import merge_adapter
from tests.vlm.world import NAMES, examples_of


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Pictures, and prompts from one character to far longer than a report."""
    folder = tmp_path_factory.mktemp("asked")
    rng = np.random.default_rng(0)
    prompts = [
        prompt(side, write_report(rng, draw_record(rng, [], "M"))[language], language)
        for side, language in [("LCA", "en"), ("RCA", "ja"), ("RCA", "en"), ("LCA", "ja")] * 2
    ]
    prompts += ["?", "\n\n".join(prompts[:6]), "LAD"]
    images = [str(folder / f"{i}.png") for i in range(len(prompts))]
    for path in images:
        grey = rng.integers(0, 256, (48, 48), dtype=np.uint8)
        Image.fromarray(grey).resize((256, 256)).save(path)
    return images, prompts


@pytest.mark.parametrize("name", NAMES)
def test_batches_answer_as_one_by_one(twins, asked, name):
    model, processor = load_backbone(name, "tiny", device="cpu")
    lengths = generate.prompt_lengths(processor, asked[1])
    assert min(lengths) < 5 and max(lengths) > 600  # so the batch of 16 is mostly padding
    one, sixteen = (generate_answers(model, processor, *asked, n, 12) for n in (1, 16))
    assert one["output"].tolist() == sixteen["output"].tolist()
    assert one["n_tokens"].tolist() == sixteen["n_tokens"].tolist()
    assert one["output"].nunique() > 6  # a model that always says the same would prove nothing
    assert len(one) == 11 and (one["seconds"] > 0).all() and one["n_tokens"].between(0, 12).all()


def test_several_pictures_stand_in_one_prompt_where_the_backbone_takes_them(twins, asked, tmp_path):
    images, prompts = asked
    groups = [(images[0], images[1], images[2]), (images[3],), (images[2], images[1], images[0])]
    model, processor = load_backbone("gemma3", "tiny", device="cpu")
    pictures = [[open_picture(path, processor) for path in own] for own in groups]
    batch = encode_prompts(processor, pictures, prompts[:3])
    is_image = batch["input_ids"] == model.config.image_token_id
    each = model.config.mm_tokens_per_image
    assert is_image.sum(1).tolist() == [3 * each, each, 3 * each]
    plain = generate_answers(model, processor, groups, prompts[:3], 2, 12)
    cached = generate_answers(model, processor, groups, prompts[:3], 1, 12, features=tmp_path)
    assert plain["output"].tolist() == cached["output"].tolist()
    single = generate_answers(model, processor, [images[3]], prompts[1:2], 1, 12)
    assert single["output"][0] == plain["output"][1]
    states = [model(**encode_prompts(processor, [p], ["?"])).logits[0, -1] for p in pictures[::2]]
    assert not torch.allclose(*states, atol=1e-4)  # their order counts
    paligemma = load_backbone("paligemma2", "tiny", device="cpu")
    with pytest.raises(ValueError, match="one picture a prompt"):
        generate_answers(*paligemma, groups, prompts[:3], 2, 12)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 20))
def test_every_case_is_in_one_batch_and_the_longest_come_first(lengths, batch_size):
    batches = generate.length_batches(lengths, batch_size)
    order = [int(i) for rows in batches for i in rows]
    assert sorted(order) == list(range(len(lengths)))
    assert all(len(rows) == batch_size for rows in batches[:-1])
    assert order == sorted(order, key=lambda i: (-lengths[i], i))


class Parrot:
    """A model that repeats the end of its prompt."""

    device = torch.device("cpu")
    generation_config = SimpleNamespace(eos_token_id=1, pad_token_id=0)

    def generate(self, input_ids, **_):
        return torch.cat([input_ids, input_ids[:, -4:]], 1)


@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(0, 30), max_size=9), batch_size=st.integers(1, 4))
def test_answers_come_back_in_the_order_of_the_cases(asked, lengths, batch_size):
    processor = make_processor("paligemma2")
    prompts = ["the LAD " * n + f"#{i}" for i, n in enumerate(lengths)]
    images = asked[0][: len(prompts)]
    made = generate_answers(Parrot(), processor, images, prompts, batch_size, 4)
    assert [text.split("#")[-1] for text in made["output"]] == [str(i) for i in range(len(made))]
    assert len(made) == len(lengths) and list(made) == ["output", "seconds", "n_tokens"]


def test_what_is_asked_twice_is_answered_once(asked, monkeypatch):
    parrot, seen = Parrot(), []
    told = generate._answer_batch
    monkeypatch.setattr(generate, "_answer_batch", lambda *x: seen.append(len(x[2])) or told(*x))
    image, prompts = asked[0][0], ["#1", "#2", "#1", "#1"]
    made = generate_answers(parrot, make_processor("paligemma2"), [image] * 4, prompts, 8, 4)
    assert seen == [2] and len(set(made["seconds"])) == 1
    assert [text.split("#")[-1] for text in made["output"]] == ["1", "2", "1", "1"]


def test_tokens_are_counted_up_to_the_end_and_sizes_and_prompts_are_checked():
    made = torch.tensor([[5, 6, 1, 0, 0], [5, 6, 7, 8, 9], [1, 0, 0, 0, 0], [5, 2, 1, 5, 1]])
    assert generate.count_tokens(made, [1, 0]) == [2, 5, 0, 2]
    for wrong in [(0, 8), (1, 0)]:
        with pytest.raises(ValueError, match="must be >= 1, got"):
            generate_answers(Parrot(), None, [], [], *wrong)
    with pytest.raises(ValueError, match="one prompt a frame, got 1 frames, 2 prompts"):
        generate_answers(Parrot(), None, ["a.png"], ["a", "b"], 1, 1)


@pytest.mark.parametrize(("output", "status"), [
    ("Sorry, as a base VLM I am not trained to answer this question.", "refusal"),
    ("sorry, as a base VLM I am not trained to answer this question", "refusal"),
    ("I'm sorry, but I can't provide a medical diagnosis from this image.", "refusal"),
    ("I’m unable to interpret angiograms.", "refusal"),
    ("申し訳ございませんが、医療診断は行えません。", "refusal"),
    ("この画像については診断できません。", "refusal"),
    ("I can't see any significant stenosis in the RCA; continue medical therapy.", "ok"),
    ("確定診断できませんが、左冠動脈に有意狭窄は認めません", "ok"),
    ("I'm sorry, this is a left coronary angiogram.", "ok"),
    ("", "empty"),
    (" \n.\t", "empty"),
    ("LCX #11 shows 75% stenosis.", "ok"),
    ("No significant stenosis in the RCA.", "ok"),
    ("RCAに有意狭窄は認めません。", "ok"),
    ("I am sorry for the image quality, but #6 shows 90 % stenosis.", "ok"),
    ("The patient cannot tolerate aspirin; the LAD is narrow.", "ok"),
    ("Consider treatment plan in context of other angiographic findings.", "ok"),
])  # fmt: skip
def test_refusals_and_empty_answers_by_the_written_rule(output, status):
    assert answer_status(output) == status


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("side, segment", [("LCA", 6), ("RCA", 2)])
def test_every_phantom_finding_counts_as_an_answer(plan, side, segment):
    for lesions in ([], [{"segment": segment, "percent": 90}]):
        for text in write_findings(lesions, side, plan).values():
            assert answer_status(text) == "ok", text


def test_shots_come_from_train_sides_take_turns_and_the_prompt_shows_their_format(world):
    examples = examples_of(world)
    shots = generate.pick_shots(examples, 4, np.random.default_rng(0))
    assert set(shots["split"]) == {"train"}
    assert shots["laterality"].tolist() == ["LCA", "RCA", "LCA", "RCA"]
    again = generate.pick_shots(examples, 4, np.random.default_rng(0))
    assert shots["case_id"].tolist() == again["case_id"].tolist()
    right = examples[examples["laterality"] == "RCA"]
    assert len(generate.pick_shots(right, 3, np.random.default_rng(0))) == 3
    assert generate.pick_shots(examples, 0, np.random.default_rng(0)).empty
    with pytest.raises(ValueError, match="9 shots need as many training patients, there are 8"):
        generate.pick_shots(examples, 9, np.random.default_rng(0))
    shared = examples.assign(patient_id=examples["patient_id"].where(examples.index > 3, "one"))
    for seed in range(5):  # four cases of one patient: at most one of them is shown
        shots = generate.pick_shots(shared, 4, np.random.default_rng(seed))
        assert shots["patient_id"].is_unique
    shots = pd.DataFrame({"report": ["R1", "R2"], "answer": ["A1", "A2"]})
    assert generate.few_shot_prompt("Ask.", shots, "en") == (
        "Examples of the answer, from other patients:\n\nReport: R1\nAnswer: A1\n\n"
        "Report: R2\nAnswer: A2\n\nAsk."
    )
    assert generate.few_shot_prompt("Ask.", shots.head(0), "en") == "Ask."
    assert "回答：A2" in generate.few_shot_prompt("?", shots, "ja")
    with pytest.raises(ValueError, match="unknown language 'de'"):
        generate.few_shot_prompt("Ask.", shots, "de")


def test_nothing_is_dropped_from_the_table(world):
    few = examples_of(world).head(4)
    refused = "Sorry, as a base VLM I am not trained to answer this question."
    answers = pd.DataFrame({"output": ["#1 25%", "", refused, "?!"], "seconds": 0.1, "n_tokens": 3})
    table = generation_table(few, list(few["prompt"]), answers, "paligemma2_base", "en")
    columns = "case_id model language prompt output seconds n_tokens status ground_truth"
    assert " ".join(table.columns) == columns and len(table) == 4
    assert table["status"].tolist() == ["ok", "empty", "refusal", "empty"]
    assert table["ground_truth"].tolist() == few["answer"].tolist()
    counts = generate.status_counts(table).iloc[0]
    assert (counts["ok"], counts["empty"], counts["refusal"], counts["cases"]) == (1, 2, 1, 4)
    with pytest.raises(ValueError, match="4 cases, 4 prompts and 3 answers"):
        generation_table(few, list(few["prompt"]), answers.head(3), "x", "en")
    own = answers.assign(status=["refusal", "", "", ""])  # what the server said is kept
    table = generation_table(few, list(few["prompt"]), own, "o4-mini", "en")
    assert table["status"].tolist() == ["refusal", "empty", "refusal", "empty"]


@pytest.fixture
def server(monkeypatch):
    """An OpenAI-compatible server: answers what its script says, and keeps the requests."""
    told = SimpleNamespace(requests=[], script=[])
    told.endpoint = Endpoint("o4-mini", "http://here:secret-port@host/v1", "sk-secret", 5, 1)

    def answer(request):
        told.requests.append(request)
        status, message = told.script.pop(0) if told.script else (200, {"content": "fine"})
        if status != 200:
            echo = f"{request.url} {dict(request.headers)}"  # as some gateways do
            return httpx.Response(status, json={"error": {"message": echo}}, headers={"x-a": echo})
        end, hidden = message.pop("finish_reason", "stop"), message.pop("hidden", 0)
        choice = {"index": 0, "finish_reason": end, "message": {"role": "assistant"} | message}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        body |= {"choices": [choice] if message else []}
        usage = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}
        usage |= {"completion_tokens_details": {"reasoning_tokens": hidden}} if hidden else {}
        body |= {"usage": usage}
        return httpx.Response(200, json=body)

    http = httpx.Client(transport=httpx.MockTransport(answer))
    monkeypatch.setattr(openai, "OpenAI", partial(openai.OpenAI, http_client=http))
    return told


@pytest.fixture
def frame(tmp_path):
    path, secret = tmp_path / "frame.png", PngImagePlugin.PngInfo()
    secret.add_text("PatientName", "YAMADA")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path, pnginfo=secret)
    return path


def test_the_endpoint_gets_prompt_and_picture(server, frame):
    said = "LCX #11 shows 75% stenosis."
    server.script = [(200, {"content": f" {said} "})]
    endpoint = replace(server.endpoint, base_url="http://host/v1")
    answers = ask(endpoint, [str(frame)], ["What is seen?"])
    assert answers.loc[0, ["output", "n_tokens", "status"]].tolist() == [said, 7, ""]
    [request] = server.requests
    body = json.loads(request.content)
    assert request.url.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == "Bearer sk-secret"
    assert body["model"] == "o4-mini" and "temperature" not in body
    picture, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is seen?"}
    sent = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(sent)) as found, Image.open(frame) as kept:
        assert np.array_equal(np.asarray(found)[..., 0], np.asarray(kept))
    assert b"YAMADA" in frame.read_bytes() and b"YAMADA" not in sent


def test_a_hiccup_is_retried_and_refusals_and_empty_answers_are_kept(server, frame, world):
    refusal = {"content": None, "refusal": "I can't help with that."}
    filtered = {"content": "", "finish_reason": "content_filter"}
    plain = {"content": "Sorry, I am not able to read angiograms."}
    server.script = [(503, {}), *((200, x) for x in (refusal, {"content": ""}, filtered, plain))]
    answers = ask(server.endpoint, [str(frame)] * 4, ["?"] * 4)
    table = generation_table(examples_of(world).head(4), ["?"] * 4, answers, "o4-mini", "en")
    assert table["status"].tolist() == ["refusal", "empty", "refusal", "refusal"]
    assert table["output"][0] == "I can't help with that." and len(server.requests) == 5


def test_an_answer_at_the_token_limit_is_cut_and_hidden_tokens_are_no_text(server, frame, world):
    told = [{"content": "LCX #11 shows", "finish_reason": "length"},
            {"content": "", "finish_reason": "length", "hidden": 7},
            {"content": "RCA #2 90%.", "hidden": 3}]  # fmt: skip
    server.script = [(200, message) for message in told]
    answers = ask(server.endpoint, [str(frame)] * 3, ["?"] * 3)
    table = generation_table(examples_of(world).head(3), ["?"] * 3, answers, "o4-mini", "en")
    assert table["status"].tolist() == ["cut", "cut", "ok"]
    assert table["n_tokens"].tolist() == [7, 0, 4] and table["output"][0] == "LCX #11 shows"
    assert generate.status_counts(table).loc[0, ["ok", "cut", "cases"]].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("script", "match"), [
    ([(500, {}), (500, {})], "case 1 of 2: InternalServerError .500"),
    ([(200, {"content": "a"}), (401, {})], "case 2 of 2: AuthenticationError .401"),
    ([(200, {})], "case 1 of 2: OpenAIError .no answer"),
])  # fmt: skip
def test_an_endpoint_that_fails_says_where_and_keeps_key_url_and_headers(
    server, frame, script, match, capfd, caplog
):
    caplog.set_level("INFO")
    server.script = script
    with pytest.raises(EndpointError, match=match) as caught:
        ask(server.endpoint, [str(frame)] * 2, ["?"] * 2)
    trace = "".join(traceback.format_exception(caught.value)) + repr(server.endpoint)
    logged = [x.getMessage() for x in caplog.records if x.name.startswith("cag_utils")]
    assert "secret" not in trace + "".join([*capfd.readouterr(), *logged])


def test_an_endpoint_nobody_serves_is_an_error(frame):
    nobody = Endpoint("o4-mini", "http://127.0.0.1:9/v1", "k", 2, 0)
    with pytest.raises(EndpointError, match="APIConnectionError"):
        ask(nobody, [str(frame)], ["?"])


@pytest.mark.parametrize("named, url, key", [
    ({"CAG_API_BASE_URL": "http://a", "OPENAI_BASE_URL": "http://b"}, "http://a", "none"),
    ({"OPENAI_API_KEY": "s"}, "https://api.openai.com/v1", "s"),
    ({"OPENAI_BASE_URL": "u", "OPENAI_API_KEY": "s"}, "u", "s"),
])  # fmt: skip
def test_the_environment_names_the_endpoint_and_the_user_what_it_may_see(named, url, key):
    somewhere = endpoint.find_endpoint("m", named)
    assert somewhere == Endpoint("m", url, key) and endpoint.find_endpoint("m", {}) is None
    assert "no endpoint" in endpoint.reason_not_to_ask(None, "phantom", True)
    assert endpoint.reason_not_to_ask(somewhere, "phantom", False) == ""
    assert "send_own_images True" in endpoint.reason_not_to_ask(somewhere, "folder", False)
    assert endpoint.reason_not_to_ask(somewhere, "folder", True) == ""


def test_a_server_of_merged_weights_answers_as_the_model_itself(tuned, tmp_path, monkeypatch):
    """`transformers serve` on a merged twin, asked as notebook 05 asks any endpoint."""
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason=f"transformers serve needs it: pip install {package}")
    folder = str(tmp_path / "merged")
    merge_adapter(tuned["gemma3"], folder)
    image, text = str(tmp_path / "a.png"), "This image is a left coronary angiogram."
    noise = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    Image.fromarray(noise).save(image)
    merged = load_backbone("gemma3", "real", "cpu", checkpoint=folder)
    said = generate_answers(*merged, [image], [text], 1, 24)["output"][0]
    monkeypatch.setattr(endpoint, "MAX_COMPLETION_TOKENS", 24)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["from transformers.cli.transformers import main; main()", "serve", folder]
    command += ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", *command], env=env) as process:
        try:  # asked again, for up to three minutes, until the server is up
            served = Endpoint(folder, f"http://127.0.0.1:{port}/v1", "none", 60, retries=25)
            answer = ask(served, [image], [text])["output"][0]
        finally:
            process.kill()
    assert said and answer == said
