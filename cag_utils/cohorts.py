"""The cohorts that a profile asks the phantom for: `python -m cag_utils.phantom --profile phantom`.

The command lives here, since the phantom itself knows no profiles; `phantom/__main__.py` runs it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cag_utils.phantom.cohort import CohortSettings, make_cohort
from cag_utils.profiles import Profile, load_profile
from cag_utils.study import data_dir

COHORTS = ("cnn", "corpus")


def cohort_settings(profile: Profile, name: str) -> CohortSettings:
    """Return the settings of one of a profile's two cohorts.

    Args:
        profile: Its `data` section counts patients, cines and frames; `scale` multiplies patients.
        name: cnn or corpus.

    Raises:
        ValueError: The profile reads own data, or a number breaks its rule.
    """
    data = profile.data
    if data.source != "phantom":
        raise ValueError(f"profile {profile.name!r} reads its own data from {data.folder!r}")
    return CohortSettings(
        name=name,
        seed=data.seed,
        n_patients=max(1, round(getattr(data, f"{name}_patients") * data.scale)),
        cines_per_patient=getattr(data, f"{name}_cines"),
        frames_low=data.frames_low,
        frames_high=data.frames_high,
        size_px=data.size_px,
    )


def ensure_phantom(profile: Profile, n_workers: int = 2, cohorts: Sequence[str] = COHORTS) -> Path:
    """Make a phantom profile's missing cohorts; return the folder of `cnn/` and `corpus/`.

    Args:
        profile: A profile whose data source is the phantom.
        n_workers: Processes.
        cohorts: Which ones; two notebooks that need one each can then run side by side.

    Raises:
        ValueError: The profile reads own data.
    """
    wanted = [cohort_settings(profile, name) for name in cohorts]
    folder = data_dir(profile)
    for settings in wanted:
        make_cohort(folder / settings.name, settings, n_workers)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and make what is missing; 0 on success."""
    parser = argparse.ArgumentParser(prog="python -m cag_utils.phantom", description=__doc__)
    parser.add_argument("--profile", default="phantom", help="smoke or phantom")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    given = parser.parse_args(arguments)
    try:
        folder = ensure_phantom(load_profile(given.profile), given.workers)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
