import pytest

from cag_utils.cohorts import cohort_settings, main
from cag_utils.profiles import load_profile


def test_profile_numbers_reach_the_cohorts_and_own_data_have_no_phantom(capsys):
    profile = load_profile("smoke")
    doubled = profile.model_copy(update={"data": profile.data.model_copy(update={"scale": 2.0})})
    got = cohort_settings(doubled, "corpus")
    assert got.n_patients == 2 * profile.data.corpus_patients
    assert got.cines_per_patient == profile.data.corpus_cines
    assert (got.size_px, got.seed) == (profile.data.size_px, profile.data.seed)
    with pytest.raises(ValueError, match="reads its own data"):
        cohort_settings(load_profile("paper"), "cnn")
    with pytest.raises(SystemExit):
        main(["--profile", "paper"])
    assert "own data" in capsys.readouterr().err
