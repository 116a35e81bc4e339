r"""Is a denoiser what an audit takes it for? To be asked of your own, before an audit of hours.

    print(check_denoiser(denoiser, images=some_training_images, conditions=theirs))

Each check's docstring says what goes wrong in an audit where it fails. FAIL is a broken contract: scores would be
wrong, or would change with the batch or from run to run. WARN is what a broken model shares with one that is sound but
untrained or shown unfamiliar images, and what only costs memory or a feature.

Two facts tell a model's numbers from others without a second model. Far out any data set is a point, so that
noise(x + level e, level) tends to e. And for images x like those it was trained on, E[x_0 | y] is the best estimate
that there is: told another noise level, or shown images in another range, it may only do worse. That needs `images`.

**Not found:** weights of another model or an older checkpoint; a noise level or a range of pixels that is off while no
images are given, or by so little that the error stays within a tenth; swapped colour channels; a latent that is scaled
by a wrong factor; a text encoder that is not the one of training; what happens in other batch sizes, in other shapes,
on another device; how well a model was trained.
"""

from volgrowth.testing.check import check_denoiser
from volgrowth.testing.verdict import Check, Report

__all__ = ["Check", "Report", "check_denoiser"]
