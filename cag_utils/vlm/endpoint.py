"""An OpenAI-compatible endpoint, for the baseline that has no published weights (o4-mini).

Nothing is sent unless an endpoint is configured in the environment, and a hospital's own pictures
only when the user says so by name.
"""

import base64
import io
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import openai
import pandas as pd
from PIL import Image
from tqdm import tqdm

OPENAI_URL = "https://api.openai.com/v1"
MAX_COMPLETION_TOKENS = 4096  # a reasoning model's hidden tokens count too
ENDS = {"content_filter": "refusal", "length": "cut"}  # the server's finish_reason -> status


@dataclass(frozen=True)
class Endpoint:
    """Where and whom to ask."""

    model: str  # the name the server knows, e.g. `o4-mini`
    base_url: str = field(repr=False)  # ends in `/v1`; may hold a password
    api_key: str = field(repr=False)  # secret: a notebook prints what a cell ends on
    timeout_s: float = 120  # of one request
    retries: int = 3  # after time-outs, dropped connections and answers 408, 409, 429 and 5xx


class EndpointError(RuntimeError):
    """The endpoint could not answer a case; nothing of its run is used."""


def find_endpoint(model: str, environment: Mapping[str, str] = os.environ) -> Endpoint | None:
    """Read the endpoint of a model from the environment; None if it names none.

    It is `CAG_API_BASE_URL` or `OPENAI_BASE_URL`, and `OPENAI_API_KEY`. A key alone means OpenAI;
    an address alone a server that wants no key.
    """
    url = environment.get("CAG_API_BASE_URL") or environment.get("OPENAI_BASE_URL")
    key = environment.get("OPENAI_API_KEY")
    if not url and not key:
        return None
    return Endpoint(model, url or OPENAI_URL, key or "none")


def reason_not_to_ask(endpoint: Endpoint | None, source: str, send_own_images: bool) -> str:
    """Say why the endpoint must not be asked; an empty text if it may.

    Only the phantom's pictures (the profile's `data.source`) leave without the user's explicit
    word: a frame may carry burnt-in text, and a rare case can be recognised, so de-identification
    must be settled with the hospital first.
    """
    if endpoint is None:
        return "no endpoint: set CAG_API_BASE_URL or OPENAI_API_KEY"
    if source != "phantom" and not send_own_images:
        return "own pictures leave this machine only with -p send_own_images True"
    return ""


def picture_url(path: str | Path) -> str:
    """Return a frame as a data URL: PNG, pixels only, without the file's own metadata."""
    with Image.open(path) as found:
        clean = Image.fromarray(np.asarray(found.convert("RGB")))
    buffer = io.BytesIO()
    clean.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def ask(endpoint: Endpoint, images: Sequence[str], prompts: Sequence[str]) -> pd.DataFrame:
    """Ask about each case, one request a case.

    No temperature is sent: o4-mini takes none, so its answers differ from run to run.

    Returns:
        One row a case: output, seconds, n_tokens (of the text: hidden reasoning is taken off),
        status (`refusal` when the server marks one, `cut` when the token limit ended the answer,
        with or without a text; else empty: `generate.answer_status` decides).

    Raises:
        EndpointError: A case got no answer after all retries. What was answered is not used: a
            model is run on every case or on none.
    """
    limits = {"timeout": endpoint.timeout_s, "max_retries": endpoint.retries}
    client = openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, **limits)
    rows = []
    cases = zip(images, prompts, strict=True)
    for i, (image, prompt) in enumerate(tqdm(cases, endpoint.model, len(prompts), mininterval=30)):
        try:
            rows.append(_ask_one(client, endpoint.model, image, prompt))
        except openai.OpenAIError as error:
            # its own words may echo address, key or headers: a table keeps what is said here
            place = f"{endpoint.model} failed at case {i + 1} of {len(prompts)}"
            code = getattr(error, "status_code", "no answer")
            raise EndpointError(f"{place}: {type(error).__name__} ({code})") from None
    return pd.DataFrame(rows, columns=["output", "seconds", "n_tokens", "status"])


def _ask_one(client: openai.OpenAI, model: str, image: str, prompt: str) -> tuple:
    content = [
        {"type": "image_url", "image_url": {"url": picture_url(image)}},
        {"type": "text", "text": prompt},
    ]
    began = time.perf_counter()
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        max_completion_tokens=MAX_COMPLETION_TOKENS,
    )
    seconds = time.perf_counter() - began
    if not answer.choices:
        raise openai.OpenAIError("the answer holds no choice")
    choice = answer.choices[0]
    refusal = getattr(choice.message, "refusal", None)
    ended = "refusal" if refusal else ENDS.get(choice.finish_reason, "")
    text = (choice.message.content or refusal or "").strip()
    return text, seconds, _text_tokens(answer.usage), ended


def _text_tokens(usage) -> int:
    """Count the tokens of the answer; reasoning models are billed for hidden ones too."""
    if not usage:
        return 0
    details = getattr(usage, "completion_tokens_details", None)
    return usage.completion_tokens - (getattr(details, "reasoning_tokens", None) or 0)
