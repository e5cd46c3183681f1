"""Robustness to common corruptions: the mean corruption error of ImageNet-C (Hendrycks & Dietterich, ICLR 2019)."""

from collections.abc import Mapping, Sequence

from samtune.errors import DataError

SEVERITIES = 5

ALEXNET_ERRORS: dict[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""Corruption -> top-1 error of AlexNet, mean over the five severities, as the authors of ImageNet-C published it."""


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> tuple[float, dict[str, float]]:
    """Returns how often a model fails, compared with AlexNet: (mCE, {corruption: CE}), in percent, lower is better.

    With the top-1 errors E of severities s: CE_c = sum_s E(model, s, c) / sum_s E(AlexNet, s, c), and mCE is the mean
    of CE_c over the 15 corruptions (eq. 1 of the paper); AlexNet has 100.

    Args:
        errors: corruption -> its top-1 errors at severities 1 to 5, fractions in [0, 1].

    Raises:
        DataError: corruptions or severities are missing or unknown, or an error is not in [0, 1]; all are listed.
    """
    problems = [f"{name} is missing" for name in ALEXNET_ERRORS if name not in errors]
    for name, values in errors.items():
        if name not in ALEXNET_ERRORS:
            problems.append(f"{name} is unknown")
        elif len(values) != SEVERITIES:
            problems.append(f"{name} has {len(values)} severities")
        elif not all(0 <= value <= 1 for value in values):
            problems.append(f"{name} has errors outside of 0 to 1")
    if problems:
        needed = f"{len(ALEXNET_ERRORS)} corruptions with {SEVERITIES} severities each"
        known = f"Known: {', '.join(ALEXNET_ERRORS)}."
        raise DataError(f"the mean corruption error needs {needed}: {'; '.join(problems)}. {known}")
    relative = {name: 100 * sum(errors[name]) / SEVERITIES / alexnet for name, alexnet in ALEXNET_ERRORS.items()}
    return sum(relative.values()) / len(relative), relative
