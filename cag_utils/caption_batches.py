"""Questions and answers as the token batches a twin's class expects."""

from collections.abc import Sequence

import torch

from cag_utils.twins import POOLED_TOKENS

PROMPT_WEIGHT = 0.2  # Gemma3 also learns to continue its prompt, so that it knows reports by heart


def is_gemma3(processor) -> bool:
    """Return whether a processor is Gemma3's, else PaliGemma's."""
    return "Gemma3" in type(processor).__name__


def prompt_ids(processor, question: str) -> list[int]:
    """Return a question's token ids, image tokens included, exactly as its processor writes them.

    Args:
        processor: A twin's processor.
        question: The user's text.
    """
    tok = processor.tokenizer
    if is_gemma3(processor):
        image = f"{tok.boi_token}{tok.image_token * POOLED_TOKENS}{tok.eoi_token}"
        text = (
            f"{tok.bos_token}<start_of_turn>user\n\n\n{image}\n\n{question.strip()}<end_of_turn>\n"
            "<start_of_turn>model\n"
        )
    else:
        images = tok.image_token * processor.image_processor.image_seq_length
        text = f"{images}{tok.bos_token}{question.strip()}\n"
    return tok(text, add_special_tokens=False).input_ids


def answer_ids(processor, answer: str) -> list[int]:
    """Return an answer's token ids with the token that ends it."""
    end = "<end_of_turn>\n" if is_gemma3(processor) else processor.tokenizer.eos_token
    return processor.tokenizer(answer + end, add_special_tokens=False).input_ids


def collate(processor, pairs: Sequence[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Turn questions and answers into a right-padded batch.

    Args:
        processor: A twin's processor.
        pairs: (question, answer).

    Returns:
        `input_ids`, `attention_mask`, `token_type_ids` (as the model class wants them: image tokens
        for Gemma3, the answer for PaliGemma) and `weight`, each (B, T); `weight` is what the loss
        of predicting each token counts.
    """
    tok = processor.tokenizer
    rows = [(prompt_ids(processor, q), answer_ids(processor, a)) for q, a in pairs]
    shape = (len(rows), max(len(q) + len(a) for q, a in rows))
    ids = torch.full(shape, tok.pad_token_id)
    mask, is_answer = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for i, (question, answer) in enumerate(rows):
        n = len(question) + len(answer)
        ids[i, :n] = torch.tensor(question + answer)
        mask[i, :n] = 1
        is_answer[i, len(question) : n] = 1
    weight = is_answer.float()
    if not is_gemma3(processor):  # the prefix sees itself whole: predicting it would be cheating
        return dict(input_ids=ids, attention_mask=mask, token_type_ids=is_answer, weight=weight)
    is_image = (ids == tok.image_token_id).long()
    after_image = is_image.flip(1).cumsum(1).flip(1) == 0
    weight += PROMPT_WEIGHT * (mask.bool() & after_image & (is_answer == 0))
    return dict(input_ids=ids, attention_mask=mask, token_type_ids=is_image, weight=weight)
