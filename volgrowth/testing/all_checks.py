"""Run all checks on a denoiser, in order."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from volgrowth.audit.scoring.derivatives import true_float32
from volgrowth.errors import kind_and_line
from volgrowth.numerics.denoisers import Condition, Denoiser
from volgrowth.testing import contract, meaning
from volgrowth.testing.probe import DenoiserProbe
from volgrowth.testing.verdict import DenoiserCheck, DenoiserReport, failure

# if one of these fails, the others have nothing to work with
FIRST: dict[str, Callable[[DenoiserProbe], DenoiserCheck]] = {
    "states": contract.check_states,
    "shape": contract.check_shape,
    "finite": contract.check_finite,
}
CHECKS: dict[str, Callable[[DenoiserProbe], DenoiserCheck]] = {
    **FIRST,
    "dependence": contract.check_dependence,
    "consistency": contract.check_consistency,
    "per image": contract.check_levels_per_image,
    "batch": contract.check_batch,
    "determinism": contract.check_determinism,
    "weights": contract.check_weights,
    "derivative": contract.check_derivative,
    "forward mode": contract.check_forward_mode,
    "meaning": meaning.check_meaning,
    "denoising": meaning.check_denoising,
    "orthogonal": meaning.check_orthogonality,
    "conditions": meaning.check_conditions,
    "sampling": meaning.check_sampling,
}


def check_denoiser(
    denoiser: Denoiser,
    image_shape: tuple[int, ...] | None = None,
    *,
    conditions: Sequence[Condition] | None = None,
    images: Float[Tensor, "batch *image"] | None = None,
) -> DenoiserReport:
    """Try a denoiser on a few images, and report what an audit of it would stumble over.

    This takes about a hundred evaluations of a batch of four images, or of as many as you give. Print the report, or
    write `assert report.ok, report` in a test. FAIL means that scores would be wrong or would change from run to run.
    WARN means something that a broken model shares with one that is untrained or was shown unfamiliar images, or
    something that only costs memory.

    The checks cannot see whether these are the weights you mean, how well they were trained, nor, without `images`,
    whether noise levels and the range of pixels are those of training.

    Args:
        denoiser: the denoiser to check.
        image_shape: shape of one image, for a denoiser that has no `image_shape` of its own.
        conditions: classes or captions to try; repeated if they are fewer than the images.
        images: (B, *image) in [-1, 1], at least two images that the model was trained on; made up by default.

    Returns:
        The report, with one `DenoiserCheck` per check; `report.ok` is true if none failed.

    Raises:
        ValueError: there is no image shape, no second image to compare with, or no condition for a model that always
            needs one.
    """
    probe, checks = DenoiserProbe(denoiser, image_shape, images, conditions), list[DenoiserCheck]()
    with true_float32():
        for name, check in CHECKS.items():
            checks.append(replace(_guarded(check, probe), name=name))
            if name in FIRST and checks[-1].status == "FAIL":
                break
    return DenoiserReport(tuple(checks))


def _guarded(check: Callable[[DenoiserProbe], DenoiserCheck], probe: DenoiserProbe) -> DenoiserCheck:
    """Return the result of a check; an exception of the code under test is a failure."""
    try:
        return check(probe)
    except Exception as error:  # anything that the code under test raises
        return failure(f"raised {kind_and_line(error)}"[:160], "expected an answer")
