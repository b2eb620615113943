"""The cohorts that a profile asks the phantom for, drawn by its command in a process of its own.

So the study's notebooks import nothing of the simulator; what they hold it to is its `VERSION`.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cag_utils.params import check_choice
from cag_utils.phantom.streams import VERSION
from cag_utils.profiles import Profile
from cag_utils.study import data_dir

COHORTS = ("cnn", "corpus")


def cohort_settings(profile: Profile, name: str) -> dict[str, str | int]:
    """Return the settings of one of a profile's two cohorts, by the phantom's names.

    Args:
        profile: Its `data` section counts patients, cines and frames; `scale` multiplies patients.

    Raises:
        ValueError: The profile reads own data, or there is no such cohort.
    """
    data = profile.data
    if data.source != "phantom":
        raise ValueError(f"profile {profile.name!r} reads its own data from {data.folder!r}")
    check_choice("cohort", name, COHORTS)
    return {
        "name": name,
        "seed": data.seed,
        "n_patients": max(1, round(getattr(data, f"{name}_patients") * data.scale)),
        "cines_per_patient": getattr(data, f"{name}_cines"),
        "frames_low": data.frames_low,
        "frames_high": data.frames_high,
        "size_px": data.size_px,
    }


def ensure_phantom(profile: Profile, n_workers: int = 2, cohorts: Sequence[str] = COHORTS) -> Path:
    """Draw a phantom profile's missing cohorts; return the folder of `cnn/` and `corpus/`.

    Args:
        profile: A profile whose data source is the phantom.
        cohorts: Which ones; two notebooks that need one each can then run side by side.

    Raises:
        ValueError: As `cohort_settings`.
        RuntimeError: The phantom's command failed; it has said why.
    """
    wanted = [cohort_settings(profile, name) for name in cohorts]
    folder = data_dir(profile)
    for settings in wanted:
        command = [sys.executable, "-m", "cag_utils.phantom", str(folder / str(settings["name"]))]
        command += [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
        command += [f"--workers={n_workers}", "--follow"]
        # it ends with this process, also after a kill: the pipe closes
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            code = process.wait()
        if code:
            raise RuntimeError(
                f"the phantom (version {VERSION}) drew no {settings['name']} cohort: {command[2:]}"
            )
    return folder
