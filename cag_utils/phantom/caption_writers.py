"""One writer a kind of caption: facts of a picture to a question and its answer. See `captions`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cag_utils.phantom.caption_phrases import (
    ADVICE,
    ARTERY_NAMES,
    ASKS,
    FORMATS,
    GLOSSARY,
    GRADE_WORDS,
    LEADS,
    NOTHING,
    PERCENT_WORDS,
    SIDES,
    STUDY_WORDS,
    WORDS,
)
from cag_utils.phantom.findings import PLANS
from cag_utils.phantom.hospital_notes import write_report
from cag_utils.phantom.patients import draw_record
from cag_utils.segments import AHA_SEGMENTS, GRADES, artery_of, check_lesion, segments_of

if TYPE_CHECKING:
    from cag_utils.phantom.captions import Scene

LANGUAGES = ("en", "ja")


def _pick(rng: np.random.Generator, options: tuple) -> str:
    return options[int(rng.integers(len(options)))]


def _ask(rng: np.random.Generator, kind: str, scene: Scene, language: str) -> str:
    return _pick(rng, ASKS[kind][language]).format(side=SIDES[scene.laterality][language][0])


def _lesions(scene: Scene) -> list[dict]:
    return sorted(map(check_lesion, scene.lesions), key=lambda x: x["segment"])


def _name(segment: int, language: str) -> str:
    found = AHA_SEGMENTS[segment]
    return found.name_en if language == "en" else found.name_ja


def _artery_first(segment: int, language: str, wanted: bool) -> str:
    """Name a segment, after its artery if wanted: the study's answers begin with that."""
    name = _name(segment, language)
    return artery_of(segment) + WORDS[language]["and"] + name if wanted else name


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
        name=_artery_first(worst["segment"], language, rng.random() < 0.5),
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
    question = _pick(rng, ASKS["grade"][language]).format(name=_name(segment, language))
    if not percent:
        return question, WORDS[language]["normal"]
    return question, WORDS[language]["grade"].format(grade=GRADE_WORDS[percent][language])


def _vessels(rng: np.random.Generator, scene: Scene, language: str) -> tuple[str, str]:
    words = WORDS[language]
    names = words["and"].join(_name(s, language) for s in scene.seen) or words["none"][:-1]
    return _ask(rng, "vessels", scene, language), names + words["end"]


def _entries(
    fmt: tuple[str, ...], lesions: list[dict], language: str, artery_first: bool = False
) -> str:
    """Write lesions in a format (between name and grade, after the grade, last)."""
    if not lesions:
        return WORDS[language]["none"]
    between, after, last = fmt
    return (
        WORDS[language]["and"].join(
            _artery_first(x["segment"], language, artery_first)
            + between
            + GRADE_WORDS[x["percent"]][language]
            + after
            for x in lesions
        )
        + last
    )


def _draw_format(rng: np.random.Generator, language: str) -> tuple[str, ...]:
    return tuple(_pick(rng, part) for part in FORMATS[language])


def _list(rng: np.random.Generator, scene: Scene, language: str) -> tuple[str, str]:
    fmt = tuple(part[0] for part in FORMATS[language])
    return _ask(rng, "list", scene, language), _entries(fmt, _lesions(scene), language)


def _referral(rng: np.random.Generator, scene: Scene, language: str) -> tuple[str, str]:
    drawn = rng.random() < 0.5
    fmt = _draw_format(rng, language) if drawn else [p[0] for p in FORMATS[language]]
    parts = [_ask(rng, "referral", scene, language), scene.report[language]]
    if rng.random() < 0.3:
        parts.reverse()
    answer = _entries(tuple(fmt), _lesions(scene), language, drawn and rng.random() < 0.5)
    return "\n\n".join(parts), answer


def _examples(rng: np.random.Generator, scene: Scene, language: str) -> tuple[str, str]:
    fmt = _draw_format(rng, language)
    words = WORDS[language]
    shown = segments_of(scene.laterality)
    with_reports = rng.random() < 0.3  # as a few-shot prompt shows them: report, then answer
    blocks = []
    for _ in range(int(rng.integers(1, 3 if with_reports else 4))):
        count = int(rng.choice([0, 1, 2], p=[0.15, 0.6, 0.25]))
        drawn = sorted(rng.choice(shown, size=count, replace=False).tolist())
        made = [check_lesion({"segment": s, "percent": int(rng.choice(GRADES))}) for s in drawn]
        shot = _entries(fmt, made, language)
        if with_reports:
            report = write_report(rng, draw_record(rng, made, "M"))[language]
            blocks.append(f"{words['report']}{report}\n{words['answer']}{shot}")
        else:
            blocks.append(words["example"] + shot)
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
        term, meaning = _name(segment, language), _name(segment, other)
    else:
        pair = PLANS[str(rng.choice(list(PLANS)))]
        term, meaning = pair[i], pair[1 - i]
    return WORDS[language]["translate"].format(term=term), meaning


def _copy(rng: np.random.Generator, scene: Scene, language: str) -> tuple[str, str]:
    """Repeat a report, or words and numbers of the study in an order that means nothing."""
    text = scene.report[language]
    if rng.random() < 0.8:
        drawn = rng.permutation([*STUDY_WORDS[language], *_codes(rng, language)])
        text = " ".join(map(str, drawn))
    return _ask(rng, "copy", scene, language) + "\n\n" + text, text


def _codes(rng: np.random.Generator, language: str) -> list[str]:
    """Arteries, numbers and percents that do not belong together."""
    numbers = [f"#{n}" for n in rng.integers(1, 16, 4)]
    percents = [f"{g}{_pick(rng, PERCENT_WORDS[language])}" for g in rng.choice(GRADES, 3)]
    return [*numbers, *percents, *map(str, rng.permutation(ARTERY_NAMES))]


WRITERS = {
    "describe": _describe,
    "side": _side,
    "worst": _worst,
    "list": _list,
    "grade": _grade,
    "vessels": _vessels,
    "referral": _referral,
    "examples": _examples,
    "glossary": _glossary,
    "copy": _copy,
}
