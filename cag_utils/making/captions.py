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

from cag_utils.cines.dicom import name_view
from cag_utils.phantom.clinic.findings import PLANS, decide_plan, write_findings
from cag_utils.phantom.clinic.notes import write_report
from cag_utils.phantom.clinic.patients import draw_record
from cag_utils.segments import (
    AHA_SEGMENTS,
    GRADES,
    LATERALITIES,
    artery_of,
    check_lesion,
    segments_of,
)

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


# percent diameter stenosis -> words
GRADE_WORDS: dict[int, dict[str, str]] = {
    25: {"en": "mild", "ja": "軽度"},
    50: {"en": "moderate", "ja": "中等度"},
    75: {"en": "significant", "ja": "有意"},
    90: {"en": "severe", "ja": "高度"},
    99: {"en": "subtotal", "ja": "亜閉塞"},
    100: {"en": "total occlusion", "ja": "完全閉塞"},
}

SIDES = {
    "LCA": {"en": ("left coronary artery", "left coronary tree"), "ja": ("左冠動脈", "左の冠動脈")},
    "RCA": {
        "en": ("right coronary artery", "right coronary tree"),
        "ja": ("右冠動脈", "右の冠動脈"),
    },
}

LEADS = {
    "en": (
        "Angiogram of the {side}{view}. ",
        "The {side} is filled with contrast{view}. ",
        "This picture shows the {side}{view}. ",
    ),
    "ja": ("{side}の造影像{view}。", "{side}が造影されている{view}。", "この画像は{side}{view}。"),
}

NOTHING = {
    "en": (
        "No narrowing is seen",
        "Smooth vessels without narrowing",
        "No significant lesion in the {laterality}",
    ),
    "ja": ("狭小化を認めない", "血管は平滑で狭小化はない", "{laterality}に有意な病変は認めません"),
}

WORDS = {
    "en": {
        "narrowing": "Narrowing in the {name}, {grade}",
        "worst": "{name}, {grade}.",
        "grade": "{grade}.",
        "normal": "No narrowing there.",
        "none": "none.",
        "and": ", ",
        "stop": ". ",
        "end": ".",
        "example": "Example: ",
        "report": "Report: ",
        "answer": "Answer: ",
        "picture": "This picture: ",
        "translate": "Say in Japanese: {term}",
        "which_advice": "Write this advice as a full sentence: {advice}",
    },
    "ja": {
        "narrowing": "{name}に{grade}の狭小化",
        "worst": "{name}、{grade}。",
        "grade": "{grade}。",
        "normal": "そこに狭小化はない。",
        "none": "なし。",
        "and": "、",
        "stop": "。",
        "end": "。",
        "example": "例：",
        "report": "レポート：",
        "answer": "回答：",
        "picture": "この画像：",
        "translate": "英語で：{term}",
        "which_advice": "次の助言を文章にしてください：{advice}",
    },
}

# What stands between a segment's name and its grade, after the grade, and at the very end. The
# first of each is the plain list format.
FORMATS = {
    "en": (
        (": ", " - ", " looks ", " has a narrowing that is ", ", "),
        ("", " by eye"),
        (".", "", " in all."),
    ),
    "ja": (("：", " - ", "に", "は", "、"), ("", "の狭小化"), ("。", "", "を認める。", "あり。")),
}

ASKS = {
    "describe": {
        "en": ("Describe the picture.", "What does this angiogram show?", "Caption this image."),
        "ja": (
            "画像を説明してください。",
            "この造影像は何を示しますか？",
            "所見を書いてください。",
        ),
    },
    "side": {
        "en": ("Which coronary artery is this?", "Left or right?"),
        "ja": ("これはどちらの冠動脈ですか？", "左右どちらですか？"),
    },
    "worst": {
        "en": ("Where is the worst narrowing?", "Name the culprit: where, and how tight?"),
        "ja": ("最も強い狭小化はどこですか？", "責任病変の場所と程度は？"),
    },
    "list": {
        "en": (
            "List every lesion.",
            "Which segments are narrowed?",
            "This image is a {side} angiogram. List its lesions.",
        ),
        "ja": (
            "病変をすべて挙げてください。",
            "どの区域が狭いですか？",
            "この画像は{side}造影です。病変を挙げてください。",
        ),
    },
    "grade": {
        "en": ("How tight is the {name}?", "Grade the {name}."),
        "ja": ("{name}はどの程度狭いですか？", "{name}の程度は？"),
    },
    "referral": {
        "en": (
            "Read the image together with the clinical report: which lesions are there?",
            "This image is a {side} angiogram. Name the lesions.",
            "Based on the report below and the image: which lesions?",
            "With the explanation of the clinical report, provide the lesions.",
        ),
        "ja": (
            "臨床レポートと画像を読み、病変を述べてください。",
            "この画像は{side}造影です。レポートを読み、病変を挙げてください。",
            "以下のレポートと画像に基づいて、病変は？",
            "臨床レポートの説明とともに、病変を示してください。",
        ),
    },
    "examples": {
        "en": ("Write like the examples of other patients.", "Follow the format."),
        "ja": ("他の患者の回答例にならって書いてください。", "同じ形式で書いてください。"),
    },
    "vessels": {
        "en": ("Which vessels are seen?", "Name the vessels in the picture."),
        "ja": ("どの血管が見えますか？", "画像の血管名を挙げてください。"),
    },
    "copy": {"en": ("Repeat the text.",), "ja": ("文章を繰り返してください。",)},
}

# plan key -> the advice in other words than the study's sentence
ADVICE: dict[str, dict[str, tuple[str, ...]]] = {
    "none": {
        "en": ("no procedure, control the risk factors", "nothing to open"),
        "ja": ("処置は不要、危険因子の管理", "治療すべき病変なし"),
    },
    "medical": {
        "en": ("drugs and follow-up", "medical therapy"),
        "ja": ("薬物療法と経過観察", "内科的治療"),
    },
    "functional": {
        "en": ("pressure wire first, stent only if ischemic", "FFR or iFR decides"),
        "ja": ("まず圧測定、虚血があればステント", "FFRかiFRで決める"),
    },
    "pci": {
        "en": ("drug-eluting stent", "open it with a stent"),
        "ja": ("薬剤溶出性ステント", "ステント留置"),
    },
    "heart_team": {
        "en": ("heart team, bypass surgery or stent", "ask the surgeons, CABG or PCI"),
        "ja": ("ハートチーム、バイパス術かステント", "外科と相談、CABGかPCI"),
    },
    "cto": {
        "en": ("test viability, then open the chronic occlusion", "CTO, prove ischemia first"),
        "ja": ("バイアビリティを調べ、慢性閉塞を開く", "CTO、まず虚血の証明"),
    },
    "emergency_pci": {
        "en": ("stent at once, emergency", "acute infarction, open now"),
        "ja": ("直ちにステント、緊急", "急性梗塞、すぐ開通"),
    },
    "context": {
        "en": ("weigh the other pictures and diseases", "grafts or dialysis, decide in context"),
        "ja": ("他の画像と併存疾患を考える", "グラフトまたは透析、総合的に判断"),
    },
}

GLOSSARY = (
    ("stenosis", "狭窄"),
    ("significant stenosis", "有意狭窄"),
    ("significant stenosis is not seen", "有意狭窄は認めません"),
    ("a stenosis can be confirmed", "狭窄が確認できます"),
    ("total occlusion", "完全閉塞"),
    ("left main", "左冠動脈主幹部"),
    ("LM", "LMT"),
    ("angiogram", "造影像"),
    ("revascularization", "血行再建"),
    ("clinical report", "臨床レポート"),
    ("future management", "今後の方針"),
    ("explanation of the findings", "所見の説明"),
    ("treatment plan", "治療方針"),
    ("comorbidities", "合併症"),
)

# What the study writes and captions do not: repeated in any order, so that no token of it is new.
ARTERY_NAMES = ("RCA", "LM", "LMT", "LAD", "LCX")
PERCENT_WORDS = {"en": ("%", "% stenosis"), "ja": ("%", "%の狭窄", "%の狭窄が確認できます")}
STUDY_WORDS = {
    "en": ("shows", "stenosis", "in the", "and", "No significant"),
    "ja": ("狭窄", "確認できます", "および", "有意狭窄", "認めません"),
}


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
