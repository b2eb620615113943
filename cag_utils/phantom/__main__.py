"""Make a profile's phantom cohorts: `python -m cag_utils.phantom --profile phantom`."""

import argparse
import sys

from cag_utils.cohorts import ensure_phantom
from cag_utils.profiles import load_profile


def main(arguments: list[str] | None = None) -> int:
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
