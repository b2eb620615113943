"""Make a profile's phantom cohorts: `python -m cag_utils.phantom --profile phantom`."""

import argparse
import sys

from cag_utils.phantom.cohort import CohortSettings, make_cohort
from cag_utils.profiles import COHORTS, cohort_settings, load_profile
from cag_utils.study import data_dir


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and make what is missing; 0 on success."""
    parser = argparse.ArgumentParser(prog="python -m cag_utils.phantom", description=__doc__)
    parser.add_argument("--profile", default="phantom", help="smoke or phantom")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    given = parser.parse_args(arguments)
    try:
        profile = load_profile(given.profile)
        cohorts = [CohortSettings(**cohort_settings(profile, name)) for name in COHORTS]
    except ValueError as error:
        parser.error(str(error))
    folder = data_dir(profile)
    for settings in cohorts:
        make_cohort(folder / settings.name, settings, given.workers)
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
