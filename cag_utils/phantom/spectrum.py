"""The X-ray beam: which energies reach the detector, and what iodine takes out of them.

Mass attenuation coefficients: NIST tables (Hubbell and Seltzer, NISTIR 5632), in cm^2/g, read
between the listed energies in logarithms. Tube spectrum: Kramers' law behind aluminium and copper;
the detector counts energy and absorbs every energy alike (assumption).
"""

import numpy as np

# fmt: off
_KEV = np.array([20, 30, 33.17, 33.18, 40, 50, 60, 80, 100, 150.0])
_WATER = np.array([0.8096, 0.3756, 0.3360, 0.3358, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505])
_ALUMINIUM = np.array([3.441, 1.128, 0.873, 0.872, 0.5685, 0.3681, 0.2778, 0.2018, 0.1704, 0.1378])
_COPPER = np.array([33.79, 10.92, 8.20, 8.19, 4.862, 2.613, 1.593, 0.7630, 0.4584, 0.2217])
_IODINE = np.array([25.43, 8.561, 6.553, 35.82, 22.10, 12.32, 7.579, 3.510, 1.942, 0.6978])
# fmt: on
ALUMINIUM_MM = 3.0  # fixed filtration of a cine tube; choice
IODINE_G_ML = 0.32  # of contrast medium, usual 300 to 370 mg/ml
_DENSITY = {"aluminium": 2.699, "copper": 8.96}
_ENERGIES = np.linspace(20, 150, 131)
TABLE_STEP, TABLE_SIZE = 1 / 64, 769  # optical depth 0 to 12


def _per_cm(table: np.ndarray, density: float) -> np.ndarray:
    """Attenuation per cm at every energy."""
    return density * np.exp(np.interp(np.log(_ENERGIES), np.log(_KEV), np.log(table)))


def detected_spectrum(kvp: float, copper_mm: float, water_mm: float) -> np.ndarray:
    """Return how much each energy contributes to the detector's signal.

    Args:
        kvp: Tube voltage, 40 to 150 kV.
        copper_mm: Added filtration.
        water_mm: Patient in the beam.

    Returns:
        (131,) weights at 20, 21 ... 150 keV, adding up to 1.

    Raises:
        ValueError: A value lies outside its range.
    """
    if not 40 <= kvp <= 150 or copper_mm < 0 or water_mm < 0:
        raise ValueError(
            f"need kvp 40 to 150, copper_mm and water_mm >= 0, got {kvp}, {copper_mm}, {water_mm}"
        )
    tube = np.maximum(kvp - _ENERGIES, 0)  # Kramers: photons ~ (E0 - E) / E, times E for energy
    depth = (
        0.1 * ALUMINIUM_MM * _per_cm(_ALUMINIUM, _DENSITY["aluminium"])
        + 0.1 * copper_mm * _per_cm(_COPPER, _DENSITY["copper"])
        + 0.1 * water_mm * _per_cm(_WATER, 1.0)
    )
    weights = tube * np.exp(-(depth - depth.min()))
    return weights / weights.sum()


def effective_kev(weights: np.ndarray) -> float:
    """Return the mean energy of a spectrum from `detected_spectrum`, keV."""
    return float(weights @ _ENERGIES)


def contrast_per_mm(weights: np.ndarray, iodine_g_ml: float = IODINE_G_ML) -> float:
    """Return the attenuation of a thin layer of undiluted contrast, per mm, above blood's.

    Args:
        weights: From `detected_spectrum`.
        iodine_g_ml: Iodine in the contrast medium.
    """
    return float(0.1 * (weights * _per_cm(_IODINE, iodine_g_ml)).sum())


def transmission_table(weights: np.ndarray) -> np.ndarray:
    """Tabulate how much of the beam a contrast-filled path lets through.

    The beam hardens: thick contrast takes out less than its first millimetre promises.

    Args:
        weights: From `detected_spectrum`.

    Returns:
        (769,) float32 transmission at optical depths 0, 1/64 ... 12, where the optical depth is the
        thin layer's attenuation per mm times mm; 1 at 0, with slope -1 there.
    """
    iodine = _per_cm(_IODINE, 1.0)
    relative = iodine / (weights * iodine).sum()
    depth = TABLE_STEP * np.arange(TABLE_SIZE)
    return (np.exp(-depth[:, None] * relative[None]) * weights).sum(1).astype(np.float32)
