"""Phantom cohorts on disk. (First the stills.)"""

from cag_utils.phantom.stills import Still, still

__all__ = ["Still", "still"]
