"""The phantom's clinical phrases, each in English and Japanese. Data only; `clinic` combines them.

Every entry is a pair (English, Japanese), or several equivalent pairs of which a report takes one.
None names an artery, a segment, a side, a territory, a grade or a person: what the picture must
show stays in the picture.
"""

Pair = tuple[str, str]

# key -> (written out, as abbreviated in notes)
RISK_FACTORS: dict[str, tuple[Pair, Pair]] = {
    "hypertension": (("hypertension", "高血圧"), ("HT", "HT")),
    "diabetes": (("type 2 diabetes", "2型糖尿病"), ("DM", "DM")),
    "dyslipidemia": (("dyslipidemia", "脂質異常症"), ("DL", "DL")),
    "smoking": (("current smoking", "喫煙"), ("smoker", "喫煙+")),
    "ex_smoking": (("former smoking", "喫煙歴"), ("ex-smoker", "喫煙歴+")),
    "family_history": (("a family history of CAD", "冠動脈疾患の家族歴"), ("FH of CAD", "家族歴+")),
    "ckd": (("chronic kidney disease", "慢性腎臓病"), ("CKD", "CKD")),
    "hemodialysis": (("hemodialysis", "血液透析"), ("HD", "HD")),
    "atrial_fibrillation": (("atrial fibrillation", "心房細動"), ("AF", "AF")),
    "stroke": (("prior stroke", "脳梗塞の既往"), ("old CVA", "陳旧性脳梗塞")),
    "pad": (("peripheral artery disease", "末梢動脈疾患"), ("PAD", "PAD")),
    "obesity": (("obesity", "肥満"), ("BMI 31", "BMI 31")),
}

OPENINGS: tuple[Pair, ...] = (
    ("{age}-year-old {sex} with {risks}.", "{age}歳{sex}、{risks}。"),
    ("{sex}, {age} years old. Risk factors: {risks}.", "{age}歳、{sex}。冠危険因子：{risks}。"),
    ("A {age}-year-old {sex}; {risks}.", "{age}歳の{sex}。{risks}。"),
)
OPENINGS_WITHOUT_RISKS: tuple[Pair, ...] = (
    ("{age}-year-old {sex} without known coronary risk factors.", "{age}歳{sex}、冠危険因子なし。"),
    ("{sex}, {age} years old. No coronary risk factors.", "{age}歳、{sex}。冠危険因子なし。"),
)

# Fact keys that the plan depends on (acute, CABG, hemodialysis) are written in every variant.
INDICATIONS: dict[str, tuple[Pair, ...]] = {
    "stemi": (
        (
            "Sudden chest pain for {hours} hours, ST elevation: STEMI, emergency CAG.",
            "{hours}時間前からの突然の胸痛、ST上昇あり。STEMIにて緊急CAG。",
        ),
        (
            "Admitted with acute STEMI, onset {hours} hours ago; emergency angiography.",
            "急性STEMI、発症{hours}時間で搬送。緊急冠動脈造影。",
        ),
    ),
    "nstemi": (
        (
            "Acute NSTEMI: rest pain for {hours} hours, ST depression, emergency CAG.",
            "急性NSTEMI。安静時胸痛が{hours}時間持続、ST低下あり。緊急CAG。",
        ),
        (
            "Rest chest pain for {hours} hours, diagnosed as acute NSTEMI; emergency angiography.",
            "{hours}時間前からの安静時胸痛。急性NSTEMIと診断。緊急冠動脈造影。",
        ),
    ),
    "effort_angina": (
        (
            "Exertional chest pain for {months} months, CCS class {ccs}.",
            "{months}か月前から労作時胸痛、CCS {ccs}度。",
        ),
        (
            "Effort angina (CCS {ccs}) for {months} months, relieved by nitroglycerin.",
            "{months}か月前からの労作性狭心症（CCS {ccs}）、ニトログリセリンで軽快。",
        ),
    ),
    "dyspnea": (
        (
            "Dyspnea on exertion for {months} months, NYHA class {nyha}.",
            "{months}か月前から労作時息切れ、NYHA {nyha}度。",
        ),
        (
            "Shortness of breath when climbing stairs, NYHA {nyha}, {months} months.",
            "{months}か月前から階段で息切れ、NYHA {nyha}。",
        ),
    ),
    "heart_failure": (
        (
            "Recovering from heart failure; CAG to look for ischemic heart disease.",
            "心不全は改善傾向。虚血性心疾患の精査目的にCAG。",
        ),
        (
            "Recently hospitalized for heart failure, NYHA {nyha}; etiology work-up.",
            "最近心不全で入院、NYHA {nyha}。原因精査目的。",
        ),
    ),
    "abnormal_ecg": (
        (
            "No symptoms; abnormal ECG found at a health check.",
            "自覚症状なし。健診で心電図異常を指摘。",
        ),
        (
            "Asymptomatic, referred for new T-wave change on ECG.",
            "無症状。心電図で新規のT波変化を認め紹介。",
        ),
    ),
    "atypical_pain": (
        (
            "Atypical chest discomfort at rest, unrelated to exertion.",
            "労作と関連のない安静時の非典型的胸部不快感。",
        ),
        (
            "Occasional stabbing chest pain lasting seconds, atypical.",
            "数秒の刺すような胸痛が時々あり、非典型的。",
        ),
    ),
    "preoperative": (
        (
            "Preoperative assessment before valve surgery, NYHA {nyha}.",
            "弁膜症手術の術前評価、NYHA {nyha}。",
        ),
        (
            "Assessment before abdominal aneurysm repair; no chest symptoms.",
            "腹部大動脈瘤の術前評価。胸部症状なし。",
        ),
    ),
    "follow_up": (
        (
            "Scheduled follow-up angiography after PCI; no recurrent symptoms.",
            "PCI後のフォローアップ造影。症状の再発なし。",
        ),
        (
            "Follow-up CAG after stenting, mild chest tightness recently.",
            "ステント留置後のフォローアップCAG。最近軽度の胸部圧迫感あり。",
        ),
    ),
}

HISTORIES: dict[str, tuple[Pair, ...]] = {
    "cabg": (("CABG {years} years ago.", "{years}年前にCABG。"), ("s/p CABG.", "CABG術後。")),
    "pci": (("PCI {years} years ago.", "{years}年前にPCI。"), ("s/p PCI.", "PCI術後。")),
    "mi": (("Old MI.", "陳旧性心筋梗塞。"), ("Prior MI.", "心筋梗塞の既往。")),
}
NO_HISTORY: tuple[Pair, ...] = (
    ("No prior MI, PCI or CABG.", "心筋梗塞、PCI、CABGの既往なし。"),
    ("First angiography.", "冠動脈造影は初回。"),
    ("No history of revascularization.", "血行再建の既往なし。"),
)

TESTS: dict[str, tuple[Pair, ...]] = {
    "troponin_raised": (
        ("Troponin raised, CK {ck} U/L.", "トロポニン上昇、CK {ck} U/L。"),
        ("hs-TnT positive; CK {ck} U/L.", "hs-TnT陽性、CK {ck} U/L。"),
    ),
    "stress_positive": (
        ("Exercise ECG positive.", "運動負荷心電図陽性。"),
        ("Stress test suggested ischemia.", "負荷検査で虚血が示唆された。"),
    ),
    "stress_negative": (
        ("Exercise ECG negative.", "運動負荷心電図陰性。"),
        ("Stress test without ischemia.", "負荷検査で虚血なし。"),
    ),
    "stress_equivocal": (
        ("Exercise ECG inconclusive.", "運動負荷心電図は判定困難。"),
        ("Stress test not completed.", "負荷検査は完遂できず。"),
    ),
    "echo": (
        ("Echo: LVEF {ef}%.", "心エコー：LVEF {ef}%。"),
        ("EF {ef}% on echocardiography.", "心エコーでEF {ef}%。"),
    ),
    "renal": (
        ("Creatinine {creatinine} mg/dL.", "Cr {creatinine} mg/dL。"),
        ("eGFR {egfr} mL/min.", "eGFR {egfr} mL/min。"),
    ),
    "lipids": (("LDL-C {ldl} mg/dL.", "LDL-C {ldl} mg/dL。"),),
    # Drawn without regard to the lesions, so the score gives nothing away.
    "ct_calcium": (
        ("Calcium score {calcium} on CT.", "CTでカルシウムスコア {calcium}。"),
        ("CT: Agatston score {calcium}.", "CT：Agatstonスコア {calcium}。"),
    ),
}

REQUESTS: tuple[Pair, ...] = (
    ("Please assess the coronary arteries.", "冠動脈の評価をお願いします。"),
    ("CAG performed for evaluation of coronary artery disease.", "冠動脈疾患の評価のためCAG施行。"),
    ("Coronary angiography was performed.", "冠動脈造影を施行。"),
    ("CAG under local anesthesia, no complications.", "局所麻酔下にCAG施行、合併症なし。"),
)
# Used only to bring a terse report to a useful length.
FILLERS: tuple[Pair, ...] = (
    ("On aspirin and a statin.", "アスピリン、スタチン内服中。"),
    ("No contrast allergy.", "造影剤アレルギーなし。"),
    ("Vital signs stable on arrival.", "来院時バイタルは安定。"),
    ("No bleeding history.", "出血の既往なし。"),
)
