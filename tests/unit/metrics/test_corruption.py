from __future__ import annotations

import pytest

from samtune.errors import DataError
from samtune.metrics.corruption import ALEXNET_ERRORS, mean_corruption_error


def alexnet() -> dict[str, list[float]]:
    return {name: [error] * 5 for name, error in ALEXNET_ERRORS.items()}


def test_alexnet_is_one_hundred() -> None:
    mean, relative = mean_corruption_error(alexnet())
    assert mean == pytest.approx(100)
    assert list(relative) == list(ALEXNET_ERRORS) and len(relative) == 15
    assert all(value == pytest.approx(100) for value in relative.values())


@pytest.mark.parametrize(
    ("corruption", "by_severity"),
    [
        ("gaussian_noise", [0.69528, 0.82542, 0.93554, 0.98138, 0.99452]),
        ("shot_noise", [0.71224, 0.85108, 0.93574, 0.98182, 0.99146]),
        ("motion_blur", [0.5843, 0.70048, 0.82108, 0.8975, 0.92638]),
    ],
)
def test_the_errors_of_alexnet_are_means_over_severities(corruption: str, by_severity: list[float]) -> None:
    # the errors by severity are published too
    assert sum(by_severity) / 5 == pytest.approx(ALEXNET_ERRORS[corruption], abs=1e-9)


def test_a_corruption_counts_relative_to_alexnet() -> None:
    errors = alexnet() | {"fog": [0.0, 0.1, 0.2, 0.3, 0.4]}
    mean, relative = mean_corruption_error(errors)
    assert relative["fog"] == pytest.approx(100 * 0.2 / 0.819324)
    assert mean == pytest.approx((14 * 100 + relative["fog"]) / 15)


def test_all_problems_are_listed() -> None:
    errors = alexnet() | {"fog": [0.1] * 4, "snow": [12.0] * 5, "rain": [0.1] * 5}
    del errors["frost"]
    with pytest.raises(DataError) as caught:
        mean_corruption_error(errors)
    message = str(caught.value)
    for problem in (
        "15 corruptions with 5 severities",
        "frost is missing",
        "fog has 4 severities",
        "snow has errors outside of 0 to 1",
        "rain is unknown",
        "Known: gaussian_noise",
    ):
        assert problem in message
