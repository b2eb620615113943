"""vLLM as the other engine of `generate_answers`: for a GPU, on merged weights, if installed.

vLLM is not among the study's requirements and never imported unless asked for. The tests run a
stand-in for it: they check what it is given and what is made of its answers, not vLLM itself.
"""

import importlib
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from transformers import PaliGemmaProcessor, ProcessorMixin

from cag_utils.decoding import ANSWER_COLUMNS, Decoding
from cag_utils.examples import open_picture


def prompt_ids(processor: ProcessorMixin, prompts: Sequence[str]) -> list[list[int]]:
    """Write prompts as the token ids that vLLM wants: as in `encode_prompts`, picture unopened.

    vLLM puts the picture's tokens in by itself: for Gemma3 in place of the one that starts an
    image, for PaliGemma before the text, with the <bos> behind them. Given text instead of ids,
    it would put a second <bos> before Gemma3's template.

    Args:
        processor: Of either backbone.
        prompts: Texts.

    Returns:
        One list a prompt.
    """
    if not prompts:
        return []
    if isinstance(processor, PaliGemmaProcessor):
        texts = [f"{text}\n" for text in prompts]
    else:
        turns = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
            for text in prompts
        ]
        texts = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return processor.tokenizer(texts, add_special_tokens=False)["input_ids"]


def decode_vllm(
    folder: str | Path,
    processor: ProcessorMixin,
    images: Sequence[str],
    prompts: Sequence[str],
    settings: Decoding,
) -> pd.DataFrame:
    """Answer all cases with vLLM, which makes its own batches as cases come and go.

    It computes in its own kernels and types, and some versions let the tokens of a prompt see only
    what stands before them, where transformers lets a picture (and PaliGemma's whole prompt) see
    itself. So its words may differ: compare some with the other engine before relying on them.

    Args:
        folder: From `adapters.save_merged`.
        processor: Of the same model.
        images: Paths of frames; all are opened at once.
        prompts: One a frame.
        settings: `batch_size` is the most cases that are worked on at a time.

    Returns:
        As `decoding.decode`; the time, without loading, is shared out evenly over all cases.

    Raises:
        FileNotFoundError: No checkpoint in the folder.
        RuntimeError: No CUDA device.
        ImportError: vLLM is not installed.
    """
    vllm = _find_vllm(folder)
    inputs = [
        {"prompt_token_ids": ids, "multi_modal_data": {"image": open_picture(path, processor)}}
        for ids, path in zip(prompt_ids(processor, prompts), images, strict=True)
    ]
    engine = vllm.LLM(
        model=str(folder),
        seed=settings.seed,
        max_num_seqs=settings.batch_size,
        limit_mm_per_prompt={"image": 1},
    )
    params = vllm.SamplingParams(
        temperature=settings.temperature, max_tokens=settings.max_new_tokens, seed=settings.seed
    )
    began = time.perf_counter()
    made = [found.outputs[0] for found in engine.generate(inputs, params, use_tqdm=False)]
    each = (time.perf_counter() - began) / max(len(made), 1)
    # an answer that stopped by itself has its end token as the last
    rows = [(x.text.strip(), each, len(x.token_ids) - (x.finish_reason == "stop")) for x in made]
    return pd.DataFrame(rows, columns=list(ANSWER_COLUMNS))


def _find_vllm(folder: str | Path):
    if not isinstance(folder, str | Path) or not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(
            "engine 'vllm' needs the folder of merged weights in the model's place, there is no "
            f"config.json in {str(folder)[:200]!r}: write it with adapters.save_merged"
        )
    if not torch.cuda.is_available():
        raise RuntimeError("engine 'vllm' needs a CUDA GPU: use engine='transformers' here")
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise ImportError(
            f"vLLM cannot be imported ({error}): pip install vllm, in an environment of its own as "
            "it pins another torch, or use engine='transformers'"
        ) from error
