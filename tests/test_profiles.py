import re

import pytest
import yaml
from pydantic import ValidationError

from cag_utils.profiles import FOLDER, load_profile, parse_profile, profile_names

PHANTOM = (FOLDER / "phantom.yaml").read_text(encoding="utf-8")


def test_the_paper_profile_holds_what_the_paper_prints():
    profile = load_profile("paper")
    assert profile.cnn.model.startswith("convnext_base") and profile.cnn.pretrained
    assert (profile.cnn.epochs, profile.cnn.batch_size) == (200, 128)
    assert profile.cnn.learning_rate == 1e-4 and profile.cnn.split_by == "video"
    assert (profile.finetune.epochs, profile.finetune.learning_rate) == (5, 1e-5)
    assert profile.sampling.min_gap == 5 and profile.cnn.image_px == 224


@pytest.mark.parametrize("name", profile_names())
def test_every_value_has_a_source_in_a_comment(name):
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if re.match(r"^ {2}\w+: \S", line)]
    assert len(values) > (2 if "like: phantom" in lines else 30)
    assert not [line for line in values if "#" not in line]


@pytest.mark.parametrize("old, new, match", [
    ("  epochs: 2", "  epoch: 2", r"unknown key 'cnn.epoch' \(did you mean 'epochs'"),
    ("  split_by: patient", "  split_by: exam", "cnn.split_by.*'patient' or 'video'"),
    ("  image_px: 224", "  image_px: many", "cnn.image_px"),
    ("  min_gap: 5", "  min_gap: 0", "sampling.min_gap"),
    ("  checkpoints:", "  lora: {gemma3: {ranks: 8}}\n  checkpoints:", "did you mean 'rank'"),
    ("  checkpoints: {}", "  checkpoints: {gemma4: a/b}", r"names \['gemma4'\], which are not"),
    ("  source: phantom", "  source: folder", "data.folder is needed"),
    ("  frames_low: 40", "  frames_low: 99", "frames_low and frames_high"),
    ("vlscore:", "vlscores:", r"unknown key 'vlscores' \(did you mean 'vlscore'"),
])  # fmt: skip
def test_a_wrong_profile_is_refused_with_the_right_name(old, new, match):
    assert old in PHANTOM
    with pytest.raises(ValueError, match=match):
        parse_profile(PHANTOM.replace(old, new, 1), "x", "x.yaml")


def test_profiles_load_hold_the_same_keys_and_cannot_be_changed_and_nothing_else_is_one():
    with pytest.raises(ValueError, match="a profile is a mapping"):
        parse_profile("- a", "x", "x.yaml")
    with pytest.raises(ValueError, match=r"unknown profile 'phantm' \(did you mean 'phantom'"):
        load_profile("phantm")
    names = ["arcade", "cadica", "hospital_small", "paper", "phantom", "smoke"]
    assert [load_profile(name).name for name in profile_names()] == names
    with pytest.raises(ValidationError, match="frozen"):
        load_profile("smoke").cnn.epochs = 3
    smoke, phantom = (
        {(section, key) for section, values in yaml.safe_load(text).items() for key in values}
        for text in ((FOLDER / "smoke.yaml").read_text(encoding="utf-8"), PHANTOM)
    )
    assert smoke == phantom


def test_a_profile_may_be_like_another_but_for_what_it_names():
    arcade, phantom = load_profile("arcade"), load_profile("phantom")
    assert arcade.cnn == phantom.cnn.model_copy(update={"epochs": 0})
    assert arcade.data.seed == 0 and arcade.data.title == "Public set ARCADE"  # data stand alone
    with pytest.raises(ValueError, match="unknown profile 'phantm'"):
        parse_profile("like: phantm", "x", "x.yaml")
    with pytest.raises(ValueError, match="unknown key 'cnn.epoch'"):
        parse_profile("like: phantom\ncnn: {epoch: 1}", "x", "x.yaml")
    with pytest.raises(ValueError, match="unknown key 'cnns'"):
        parse_profile("like: phantom\ncnns: {epoch: 1}", "x", "x.yaml")
