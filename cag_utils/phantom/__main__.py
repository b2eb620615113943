"""`python -m cag_utils.phantom`: the study's command `cag_utils.cohorts` by the phantom's name."""

import runpy

if __name__ == "__main__":
    runpy.run_module("cag_utils.cohorts", run_name="__main__", alter_sys=True)
