"""The wording of the generic captions, English and Japanese. Data only; `captions` combines it."""

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
PERCENT_WORDS = {
    "en": ("%", "% stenosis"),
    "ja": ("%", "%の狭窄", "%の狭窄が確認できます"),
}
STUDY_WORDS = {
    "en": ("shows", "stenosis", "in the", "and", "No significant"),
    "ja": ("狭窄", "確認できます", "および", "有意狭窄", "認めません"),
}
