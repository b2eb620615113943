"""Generic captions of a phantom picture: what the twins read and write before they meet the study.

They name the same facts as the study's findings (side, segment, grade, advice) in other words, in
English and Japanese, as descriptions, answers to questions, lists and examples to follow. The
study's own sentence ("LCX #11 shows 75% stenosis.") is never written here: LoRA has to teach it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cag_utils.phantom.caption_phrases import (
    ADVICE,
    ASKS,
    FORMATS,
    GLOSSARY,
    GRADE_WORDS,
    LEADS,
    NOTHING,
    SIDES,
    STUDY_FORMAT,
    WORDS,
)
from cag_utils.phantom.clinic import PLANS
from cag_utils.segments import AHA_SEGMENTS, GRADES, LATERALITIES, check_lesion, segments_of

LANGUAGES = ("en", "ja")
# Share of each kind of caption. Lists and referrals are closest to what the study asks for.
KINDS = {
    "describe": 0.20,
    "side": 0.03,
    "worst": 0.14,
    "list": 0.22,
    "grade": 0.07,
    "referral": 0.20,
    "examples": 0.07,
    "glossary": 0.05,
    "copy": 0.02,
}


@dataclass(frozen=True)
class Scene:
    """What is known of one picture.

    Attributes:
        laterality: LCA or RCA.
        lesions: `{segment, percent}` on this side, any order.
        view: Projection in plain words, e.g. `LAO cranial`; empty if unknown.
        report: `{"ja": ..., "en": ...}` the patient's pre-procedure report.
        plan: A key of `clinic.PLANS`.
    """

    laterality: str
    lesions: tuple[Mapping, ...]
    view: str
    report: Mapping[str, str]
    plan: str

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


def name_view(primary_deg: float, secondary_deg: float) -> str:
    """Name a projection from the positioner angles: RAO/LAO first, then caudal/cranial.

    Args:
        primary_deg: Positive towards LAO, degrees.
        secondary_deg: Positive towards cranial, degrees.

    Returns:
        E.g. `LAO cranial`, `AP caudal`, `RAO`; within 10 degrees counts as none.

    Source:
        DICOM PS3.3 C.8.7.5 (Positioner Primary and Secondary Angle) for the signs.
    """
    sideways = "AP" if abs(primary_deg) < 10 else ("LAO" if primary_deg > 0 else "RAO")
    tilt = "" if abs(secondary_deg) < 10 else (" cranial" if secondary_deg > 0 else " caudal")
    return sideways + tilt


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


def base_corpus(rng: np.random.Generator, scenes: Iterable[Scene]) -> list[str]:
    """Return text for the tokenizer: a question and an answer of every kind, both languages.

    Args:
        rng: Generator.
        scenes: Pictures; a few thousand cover every wording.

    Returns:
        Texts, with a blank line between question and answer.
    """
    return [
        "\n\n".join(write_caption(rng, scene, language, kind))
        for scene in scenes
        for language in LANGUAGES
        for kind in KINDS
    ]


def _pick(rng: np.random.Generator, options: tuple) -> str:
    return options[int(rng.integers(len(options)))]


def _ask(rng: np.random.Generator, kind: str, scene: Scene, language: str) -> str:
    return _pick(rng, ASKS[kind][language]).format(side=SIDES[scene.laterality][language][0])


def _lesions(scene: Scene) -> list[dict]:
    return sorted(map(check_lesion, scene.lesions), key=lambda x: x["segment"])


def _name(segment: int, language: str) -> str:
    found = AHA_SEGMENTS[segment]
    return found.name_en if language == "en" else found.name_ja


def _nothing(rng: np.random.Generator, scene: Scene, language: str) -> str:
    return _pick(rng, NOTHING[language]).format(laterality=scene.laterality)


def _describe(rng: np.random.Generator, scene: Scene, language: str) -> tuple[str, str]:
    side = _pick(rng, SIDES[scene.laterality][language])
    view = f", {scene.view} view" if language == "en" else f"、{scene.view}像"
    lead = _pick(rng, LEADS[language]).format(side=side, view=view if scene.view else "")
    words = WORDS[language]
    parts = [
        words["narrowing"].format(
            name=_name(x["segment"], language), grade=GRADE_WORDS[x["percent"]][language]
        )
        for x in _lesions(scene)
    ]
    body = words["stop"].join(parts) if parts else _nothing(rng, scene, language)
    return _ask(rng, "describe", scene, language), lead + body + words["end"]


def _side(rng: np.random.Generator, scene: Scene, language: str) -> tuple[str, str]:
    answer = f"{_pick(rng, SIDES[scene.laterality][language])} ({scene.laterality})"
    return _ask(rng, "side", scene, language), answer + WORDS[language]["end"]


def _worst(rng: np.random.Generator, scene: Scene, language: str) -> tuple[str, str]:
    question = _ask(rng, "worst", scene, language)
    lesions = _lesions(scene)
    if not lesions:
        return question, _nothing(rng, scene, language) + WORDS[language]["end"]
    worst = max(lesions, key=lambda x: x["percent"])  # the lower AHA number wins a tie
    return question, WORDS[language]["worst"].format(
        segment=worst["segment"],
        percent=worst["percent"],
        artery=_artery(worst["artery"], language),
        name=_name(worst["segment"], language),
        grade=GRADE_WORDS[worst["percent"]][language],
    )


def _grade(rng: np.random.Generator, scene: Scene, language: str) -> tuple[str, str]:
    lesions = _lesions(scene)
    # Half of the questions name a narrowed segment, the others any segment of this side.
    if lesions and rng.random() < 0.5:
        segment = lesions[int(rng.integers(len(lesions)))]["segment"]
    else:
        segment = int(rng.choice(segments_of(scene.laterality)))
    percent = max((x["percent"] for x in lesions if x["segment"] == segment), default=0)
    question = _pick(rng, ASKS["grade"][language]).format(
        segment=segment, name=_name(segment, language)
    )
    if not percent:
        return question, WORDS[language]["normal"]
    words = GRADE_WORDS[percent][language]
    return question, WORDS[language]["grade"].format(percent=percent, grade=words)


def _artery(artery: str, language: str) -> str:
    return "LMT" if language == "ja" and artery == "LM" else artery  # as Japanese notes write it


def _entries(fmt: tuple[str, ...], lesions: list[dict], language: str) -> str:
    """Write lesions in a format (between artery and number, number and grade, after, last)."""
    if not lesions:
        return WORDS[language]["none"]
    before, between, after, last = fmt
    return (
        WORDS[language]["and"].join(
            f"{_artery(x['artery'], language)}{before}{x['segment']}{between}{x['percent']}{after}"
            for x in lesions
        )
        + last
    )


def _draw_format(rng: np.random.Generator, language: str) -> tuple[str, ...]:
    while (fmt := tuple(_pick(rng, part) for part in FORMATS[language])) == STUDY_FORMAT[language]:
        pass  # never the study's own sentence
    return fmt


def _list(rng: np.random.Generator, scene: Scene, language: str) -> tuple[str, str]:
    fmt = tuple(part[0] for part in FORMATS[language])
    return _ask(rng, "list", scene, language), _entries(fmt, _lesions(scene), language)


def _referral(rng: np.random.Generator, scene: Scene, language: str) -> tuple[str, str]:
    fmt = _draw_format(rng, language) if rng.random() < 0.5 else [p[0] for p in FORMATS[language]]
    findings = _entries(tuple(fmt), _lesions(scene), language)
    advice = WORDS[language]["advice"].format(advice=_pick(rng, ADVICE[scene.plan][language]))
    parts = [_ask(rng, "referral", scene, language), scene.report[language]]
    if rng.random() < 0.3:
        parts.reverse()
    return "\n\n".join(parts), findings + WORDS[language]["gap"] + advice


def _examples(rng: np.random.Generator, scene: Scene, language: str) -> tuple[str, str]:
    fmt = _draw_format(rng, language)
    words = WORDS[language]
    shown = segments_of(scene.laterality)
    blocks = []
    for _ in range(int(rng.integers(1, 4))):
        count = int(rng.choice([0, 1, 2], p=[0.15, 0.6, 0.25]))
        drawn = sorted(rng.choice(shown, size=count, replace=False).tolist())
        made = [check_lesion({"segment": s, "percent": int(rng.choice(GRADES))}) for s in drawn]
        blocks.append(words["example"] + _entries(fmt, made, language))
    question = [_ask(rng, "examples", scene, language), *blocks, words["picture"]]
    return "\n\n".join(question), _entries(fmt, _lesions(scene), language)


def _glossary(rng: np.random.Generator, scene: Scene, language: str) -> tuple[str, str]:
    other = LANGUAGES[1 - LANGUAGES.index(language)]
    i = LANGUAGES.index(language)
    draw = rng.random()
    if draw < 0.4:
        plan = str(rng.choice(list(PLANS)))
        return WORDS[language]["which_advice"].format(
            advice=_pick(rng, ADVICE[plan][language])
        ), PLANS[plan][i]
    if draw < 0.6:
        pair = _pick(rng, GLOSSARY)
        term, meaning = pair[i], pair[1 - i]
    elif draw < 0.8:
        segment = int(rng.integers(1, 16))
        term, meaning = _name(segment, language), f"{_name(segment, other)} (AHA {segment})"
    else:
        pair = PLANS[str(rng.choice(list(PLANS)))]
        term, meaning = pair[i], pair[1 - i]
    return WORDS[language]["translate"].format(term=term), meaning


def _copy(rng: np.random.Generator, scene: Scene, language: str) -> tuple[str, str]:
    text = scene.report[language]
    return _ask(rng, "copy", scene, language) + "\n\n" + text, text


WRITERS = {
    "describe": _describe,
    "side": _side,
    "worst": _worst,
    "list": _list,
    "grade": _grade,
    "referral": _referral,
    "examples": _examples,
    "glossary": _glossary,
    "copy": _copy,
}
