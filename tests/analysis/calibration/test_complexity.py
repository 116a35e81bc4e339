import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.support.tables import failed, scores
from volgrowth.analysis.calibration.complexity import REGRESSORS, regressors
from volgrowth.sources import features

CHECKERBOARD = np.indices((8, 8)).sum(0)[None] % 2 * 255
HALVES = np.repeat([[0, 255]], 4, 1)[None].repeat(8, 1)


def columns(pixels: np.ndarray) -> dict[str, float]:
    """An image's regressors by name, through the columns that the audit writes."""
    row = regressors(scores(features(pixels.astype(np.uint8))))[0]
    return dict(zip(REGRESSORS, row.tolist(), strict=True))


def test_one_row_each_in_the_order_of_the_names() -> None:
    table = scores({"png_bytes": 100, "variance": 0.25, "total_variation": 0.5, "mean": -0.75, "edge_density": 0.125})
    values = regressors(table)
    assert values.dtype == np.float64
    half_a_grey_level = 0.5 / 127.5
    assert_allclose(values, [[np.log(100), 0.25, np.log(0.25 + half_a_grey_level**2), 0.5, -0.75, 0.125]])


def test_a_checkerboard() -> None:
    """Every neighbour differs by 2, half of the pixels are 1 and half -1."""
    known = columns(CHECKERBOARD)
    assert (known["variance"], known["total_variation"], known["mean"], known["edge_density"]) == (1, 2, 0, 1)


def test_two_halves() -> None:
    """Of 56 neighbours down and 56 across, the 8 across the middle differ."""
    known = columns(HALVES)
    assert known["variance"] == 1
    assert known["total_variation"] == pytest.approx(2 * 8 / 112)
    assert known["edge_density"] == pytest.approx(8 / 112)


@pytest.mark.parametrize("grey", [0, 127, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_flat_images_are_finite(grey: int, channels: int) -> None:
    known = columns(np.full((channels, 8, 8), grey))
    assert np.isfinite(list(known.values())).all()
    assert known["variance"] == known["total_variation"] == known["edge_density"] == 0
    assert known["mean"] == pytest.approx(grey / 127.5 - 1)
    assert known["log_variance"] == pytest.approx(2 * np.log(0.5 / 127.5))


def test_a_noisy_image_is_more_complex_than_a_plain_one() -> None:
    noise = columns(np.random.default_rng(0).integers(0, 256, (1, 8, 8)))
    faint = columns(np.full((1, 8, 8), 100) + np.eye(8, dtype=int))
    for name in ("log_png_bytes", "variance", "log_variance", "total_variation", "edge_density"):
        assert noise[name] > faint[name]


def test_rows_without_an_image_are_nan() -> None:
    values = regressors(scores({}, failed(), failed("non_finite"), failed("crashed")))
    assert values.shape == (4, len(REGRESSORS))
    assert np.isfinite(values[[0, 2]]).all()
    assert np.isnan(values[[1, 3]]).all()


def test_no_rows() -> None:
    assert regressors(scores()).shape == (0, len(REGRESSORS))
