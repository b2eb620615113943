"""CONTRIBUTING's walk: a made-up backbone is one entry, a twin's folder and a profile line."""

import json

from cag_utils.making.twins import build_twin
from cag_utils.profiles import FOLDER
from tests.vlm.world import output_of, write_pairs

# The entry comes first, as it would stand in the registry; all else is what the notebooks call.
WALK = """
import json, sys
from pathlib import Path
import pandas as pd
from cag_utils import backbones
from cag_utils.vlm import loading
from cag_utils.backbones import BACKBONES, Backbone
from cag_utils.hub import Checkpoint

weights, pairs, out = map(Path, sys.argv[1:4])
loading.WEIGHTS = weights
BACKBONES["mine"] = Backbone(
    title="Mine-1B", colours=("#123456", "#654321"), prompt="prefix", stand_in="gemma3",
    checkpoint=Checkpoint("me/mine-1b", "v1", "https://example.org", "mine_twin", "MIT"),
    lora_rank=4, lora_alpha=8, image_px=224, image_tokens=196,
    lora_targets=r".*language_model\\..*\\.(q_proj|v_proj)",
)

from cag_utils.corpus.examples import read_examples
from cag_utils.vlm.generate import generate_answers, generation_table
from cag_utils.vlm.lora import load_tuned
from cag_utils.vlm.preflight import preflight, sources_table
from cag_utils.report import MODEL_COLOURS, MODEL_NAMES
from cag_utils.scores.measures import measures
from cag_utils.scores.scorecard import against_base
from cag_utils.profiles import parse_profile
from cag_utils.vlm.sft import make_job, reload_difference, run_job

profile = parse_profile(sys.stdin.read(), "smoke", "smoke.yaml")
job = make_job(profile.finetune, "mine", "en", pairs, out, seed=0)
preflight("mine", job.size, rank=job.lora.rank, **job.source)
adapter = run_job(job)
model, processor = load_tuned("mine", job.size, adapter, **job.source)
test = read_examples(pairs, "en", job.outputs).query("split == 'test'")
images, prompts = list(test["image"]), list(test["prompt"])
answers = generate_answers(model, processor, images, prompts, 4, 8)
table = generation_table(test, prompts, answers, "mine_lora", "en")
history = pd.read_csv(out / "history.csv")
scores = pd.DataFrame(
    {"patient_id": ["a", "b"] * 2, "case_id": ["a", "b"] * 2}
    | {"model": ["mine_lora"] * 2 + ["gemma3_base"] * 2}
    | {name: 1.0 for m in measures().values() for name in (m.top, *m.bottom)}
)
print(json.dumps({
    "names": [MODEL_NAMES["mine_base"], MODEL_NAMES["mine_lora"]],
    "colours": [MODEL_COLOURS["mine_base"], MODEL_COLOURS["mine_lora"]],
    "source": sources_table("mine")["source"].tolist(),
    "trained": pd.read_csv(out / "trainable.csv").query("method != 'frozen'")["part"].tolist(),
    "config": json.loads((adapter / "adapter_config.json").read_text()),
    "steps": int(history["step"].max()), "reload": reload_difference(job),
    "answers": len(table), "weights": list(BACKBONES["mine"].twins),
    "bases": sorted(set(against_base(scores, profile.stats, 0)["base"])),
}))
"""


def test_a_made_up_backbone_is_added_in_one_place_and_runs(tmp_path):
    build_twin("paligemma2", tmp_path / "weights" / "mine_twin")
    pairs = write_pairs(tmp_path, train=8, val=2, test=3)
    text = (FOLDER / "smoke.yaml").read_text(encoding="utf-8")
    line = "backbones: [paligemma2, gemma3, conceptclip_gemma3]"
    assert line in text
    folders, profile = (tmp_path / "weights", pairs, tmp_path / "run"), "backbones: [mine]"
    told = output_of(WALK, *folders, given=text.replace(line, profile), HF_HUB_OFFLINE="1")
    found = json.loads(told.splitlines()[-1])
    assert found["names"] == ["Mine-1B (unfine-tuned)", "Mine-1B w/LoRA"]
    assert found["colours"] == ["#123456", "#654321"] and found["bases"] == ["gemma3_base"]
    assert found["source"] == found["weights"] == ["mine_twin"]
    assert found["trained"] == ["language model: q_proj", "language model: v_proj", "projector"]
    assert (found["config"]["r"], found["config"]["lora_alpha"]) == (4, 8)
    assert found["config"]["base_model_name_or_path"] == "cag_utils/weights/mine_twin"
    assert (found["steps"], found["reload"], found["answers"]) == (4, 0, 3)
