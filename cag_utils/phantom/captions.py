"""Generic captions of a phantom picture: what the twins read and write before they meet the study.

They name the same facts as the study's findings (side, segment, grade) in other words, in English
and Japanese, as descriptions, answers to questions, lists and examples to follow. A segment has its
name ("proximal LAD"), a grade its word ("severe"). AHA numbers, percents, plans and the study's own
sentence ("LCX #11 shows 75% stenosis.") never belong to a picture here: LoRA has to teach them.
Tasks without a picture (repeat, translate) see to it that no word of the study is new.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cag_utils.cine_dicom import name_view
from cag_utils.phantom.caption_writers import LANGUAGES, WRITERS
from cag_utils.phantom.findings import PLANS, decide_plan, write_findings
from cag_utils.phantom.hospital_notes import write_report
from cag_utils.phantom.patients import draw_record
from cag_utils.segments import GRADES, LATERALITIES, check_lesion, segments_of

# Share of each kind of caption. Lists and referrals are closest to what the study asks for.
KINDS = {
    "describe": 0.16,
    "side": 0.03,
    "worst": 0.12,
    "list": 0.20,
    "grade": 0.08,
    "vessels": 0.05,
    "referral": 0.16,
    "examples": 0.04,
    "glossary": 0.05,
    "copy": 0.11,
}
# Short questions about the picture alone, and the study's words: embeddings are tied, so a word
# that is not written again and again stays random, and LoRA can then not make the model say it.
LOOKING = ("describe", "side", "worst", "list", "grade", "vessels", "copy")


@dataclass(frozen=True)
class Scene:
    """What is known of one picture.

    Attributes:
        laterality: LCA or RCA.
        lesions: `{segment, percent}` on this side, any order.
        view: Projection in plain words, e.g. `LAO cranial`; empty if unknown.
        report: `{"ja": ..., "en": ...}` the patient's pre-procedure report.
        plan: A key of `clinic.PLANS`.
        seen: AHA segments that can be seen, rising.
    """

    laterality: str
    lesions: tuple[Mapping, ...]
    view: str
    report: Mapping[str, str]
    plan: str
    seen: tuple[int, ...] = ()

    def __post_init__(self):
        """Check the side, the plan, and that every lesion lies on this side.

        Raises:
            ValueError: One of them does not fit.
        """
        if self.laterality not in LATERALITIES or self.plan not in PLANS:
            raise ValueError(
                f"a scene needs LCA or RCA and a plan of {list(PLANS)}, got "
                f"{self.laterality!r} and {self.plan!r}"
            )
        shown = segments_of(self.laterality)
        if strays := [x for x in map(check_lesion, self.lesions) if x["segment"] not in shown]:
            raise ValueError(f"an injection of the {self.laterality} does not show {strays}")


def write_caption(
    rng: np.random.Generator, scene: Scene, language: str, kind: str | None = None
) -> tuple[str, str]:
    """Write one question and its answer about a picture.

    Args:
        rng: Generator; picks the kind and the wording.
        scene: The picture's facts.
        language: en or ja.
        kind: A key of `KINDS`; drawn by its share if None.

    Returns:
        (question, answer), both non-empty.

    Raises:
        ValueError: Unknown language or kind.
    """
    if language not in LANGUAGES or kind not in (None, *KINDS):
        raise ValueError(
            f"captions are written in {LANGUAGES} and of the kinds {tuple(KINDS)}, got "
            f"{language!r} and {kind!r}"
        )
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    return WRITERS[kind](rng, scene, language)


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene without a picture: any side, up to three lesions, a patient to fit."""
    side = str(rng.choice(LATERALITIES))
    segments = rng.choice(segments_of(side), size=int(rng.integers(4)), replace=False)
    lesions = tuple(
        check_lesion({"segment": int(s), "percent": int(rng.choice(GRADES))}) for s in segments
    )
    record = draw_record(rng, lesions, str(rng.choice(["M", "F"])))
    view = name_view(rng.uniform(-50, 50), rng.uniform(-40, 40))
    plan = decide_plan(record, lesions)
    return Scene(side, lesions, view, write_report(rng, record), plan, segments_of(side))


def base_corpus(rng: np.random.Generator, patients: int) -> list[str]:
    """Return the captions that the twins are pretrained on, as text: all kinds, both languages.

    Args:
        rng: Generator.
        patients: Random scenes; a few hundred cover every wording.

    Returns:
        Texts, with a blank line between question and answer.
    """
    return [
        "\n\n".join(write_caption(rng, scene, language, kind))
        for scene in (random_scene(rng) for _ in range(patients))
        for language in LANGUAGES
        for kind in KINDS
    ]


def vocabulary_corpus(rng: np.random.Generator, patients: int = 3000) -> list[str]:
    """Return the text that the tokenizer is trained on: captions and the study's findings.

    The tokenizer may know the study's spelling; the models never read the findings themselves.

    Args:
        rng: Generator.
        patients: Random scenes.
    """
    scenes = [random_scene(rng) for _ in range(patients)]
    findings = [write_findings(s.lesions, s.laterality, s.plan).values() for s in scenes]
    advice = [text for pair in PLANS.values() for text in pair] * (patients // 5)
    return base_corpus(rng, patients) + [text for both in findings for text in both] + advice
