"""Check your own denoiser before an audit that takes hours.

    print(check_denoiser(denoiser, images=some_training_images, conditions=their_classes_or_captions))

The docstring of each check says what goes wrong in an audit of a denoiser that does not pass it. FAIL is a broken
contract: scores would be wrong, or would change with the batch or from run to run. WARN is something that a broken
model shares with a sound one that is untrained or was shown unfamiliar images, or something that only costs memory or
a feature.

Two facts tell a trained model's output from other numbers without a second model. At the highest noise level any data
set looks like a single point, so noise(x + level * e, level) is close to e. And for images x like those of training,
E[x_0 | y] is a posterior mean, whose error is orthogonal to every function of y: of the true noise, the answer explains
all that answer and input can explain together (`volgrowth.numerics.orthogonality`). The second fact needs `images`.

**Not found:** weights of another model or an older checkpoint; a noise level or range of pixels that is off when no
images are given, or that is off so little that the loss stays within a few percent, as it may in a network that
predicts x_0; swapped colour channels; a text encoder that is not the one of training; faults in other batch sizes, in
other shapes or on another device; how well the model was trained.
"""

from volgrowth.testing.all_checks import check_denoiser
from volgrowth.testing.verdict import DenoiserCheck, DenoiserReport

__all__ = ["DenoiserCheck", "DenoiserReport", "check_denoiser"]
