"""Answers during training: a few validation cases, read by the rubric's program."""

import pandas as pd
import torch
from transformers import ProcessorMixin

from cag_utils.entities import Entities, read_entities
from cag_utils.examples import encode_prompts, open_picture, read_examples
from cag_utils.jobs import Job
from cag_utils.rubric import score
from cag_utils.scorecard import truth_of

LONGEST = {"tiny": 96, "real": 256}  # tokens of an answer; the phantom's are shorter
SCORES = ("segment", "grade", "laterality", "plan", "overall")


class AnswerScorer:
    """Lets a model in training answer, and marks the answers.

    The loss says how surprising the true words are; it hardly moves when the segment is wrong and
    all else is right. These scores do.
    """

    def __init__(self, job: Job, processor: ProcessorMixin):
        """Choose the cases: validation, evenly spread, always the same.

        Args:
            job: Its settings say how many.
            processor: Of the backbone.
        """
        examples = read_examples(job.pairs, job.language, job.outputs)
        val = examples[examples["split"] == "val"]
        self.n_cases = min(job.finetune.eval_cases, len(val))
        self.cases = val.iloc[[i * len(val) // self.n_cases for i in range(self.n_cases)]]
        pairs = pd.read_csv(job.pairs).set_index("case_id")
        self.truths = [truth_of(pairs.loc[c], job.language) for c in self.cases["case_id"]]
        self.job, self.processor = job, processor

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        """Return the mean of each of `SCORES` over the cases whose truth is known.

        Args:
            model: The model as it is now; left in the mode it was in.
        """
        was_training = model.training
        model.eval()
        size = self.job.finetune.batch_size
        parts = [self.cases.iloc[i : i + size] for i in range(0, self.n_cases, size)]
        outputs = [text for part in parts for text in self._answer(model, part)]
        model.train(was_training)
        read = [read_entities(text, self.job.language) for text in outputs]
        marks = pd.DataFrame(map(mark, read, self.truths), columns=list(SCORES), dtype=float)
        return marks.mean().dropna().to_dict()

    def _answer(self, model: torch.nn.Module, cases: pd.DataFrame) -> list[str]:
        pictures = [open_picture(path, self.processor) for path in cases["image"]]
        batch = encode_prompts(self.processor, pictures, list(cases["prompt"])).to(model.device)
        longest = LONGEST[self.job.size]
        with torch.inference_mode():
            made = model.generate(**batch, max_new_tokens=longest, do_sample=False)
        answers = made[:, batch["input_ids"].shape[1] :]
        return self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)


def mark(output: Entities, truth: Entities) -> dict[str, float | None]:
    """Mark one answer.

    Args:
        output: What it states.
        truth: What is so.

    Returns:
        `segment` (the very AHA numbers), `laterality`, `plan`: 0 or 1; `grade`: share of the true
        lesions that are named with a grade at most one AHA step off; `overall`: the rubric's 0 to
        10. None where the truth is unknown, and for `grade` where there is no lesion.
    """
    found = score(output, truth)
    plan_error = found["treatment_error"]
    return {
        "segment": found["segment_match"],
        "grade": found["grades_near"],
        "laterality": found["laterality_match"],
        "plan": None if plan_error is None else 1 - plan_error,
        "overall": found["overall"],
    }
