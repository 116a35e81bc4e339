"""All checks, in order."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from volgrowth.audit.scoring.measures import true_float32
from volgrowth.numerics.denoisers import Condition, Denoiser
from volgrowth.testing import contract, meaning
from volgrowth.testing.bench import Bench
from volgrowth.testing.verdict import Check, Report, reason

# where one of these fails there is nothing to be said of the others
FIRST: dict[str, Callable[[Bench], Check]] = {
    "states": contract.states,
    "shape": contract.shape,
    "finite": contract.finite,
}
CHECKS: dict[str, Callable[[Bench], Check]] = {
    **FIRST,
    "dependence": contract.dependence,
    "consistency": contract.consistency,
    "per image": contract.per_image,
    "batch": contract.batch,
    "determinism": contract.determinism,
    "weights": contract.weights,
    "derivative": contract.derivative,
    "forward mode": contract.forward_mode,
    "meaning": meaning.meaning,
    "lowest": meaning.lowest,
    "highest": meaning.highest,
    "denoising": meaning.denoising,
    "reading": meaning.reading,
    "conditions": meaning.conditions,
    "sampling": meaning.sampling,
}


def check_denoiser(
    denoiser: Denoiser,
    image_shape: tuple[int, ...] | None = None,
    *,
    conditions: Sequence[Condition] | None = None,
    images: Float[Tensor, "batch *image"] | None = None,
) -> Report:
    """Try a denoiser on a few images, and say what an audit by it would stumble over.

    It takes about a hundred evaluations of a batch of four images, or of as many as are given. `print` what comes back,
    or `assert report.ok, report` in a test. FAIL means that scores would be wrong or would change from run to run; WARN
    what a broken model shares with one that is untrained or shown unfamiliar images, or that only costs memory.

    It cannot see whether these are the weights you mean, how well they were trained, nor, without `images`, whether
    noise levels and the range of pixels are those of training.

    Args:
        image_shape: of one image, where the denoiser does not say.
        conditions: classes or captions to try, repeated where they are fewer than images.
        images: (two or more, *image) in [-1, 1] that the model was trained on; made up where there are none.

    Raises:
        ValueError: there is no shape, no second image to compare with, or no condition where the model needs one.
    """
    bench, checks = Bench(denoiser, image_shape, images, conditions), list[Check]()
    with true_float32():
        for name, check in CHECKS.items():
            checks.append(replace(_guarded(check, bench), name=name))
            if name in FIRST and checks[-1].status == "FAIL":
                break
    return Report(tuple(checks))


def _guarded(check: Callable[[Bench], Check], bench: Bench) -> Check:
    try:
        return check(bench)
    except Exception as error:  # whatever the code under test raises
        return Check("FAIL", f"raised {reason(error)}", "expected an answer")
