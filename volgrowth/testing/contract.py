"""Checks of the contract: shapes, batches, randomness, gradients.

Each docstring says what the check does, and what goes wrong in an audit of a denoiser that fails it.
"""

from math import log10

import torch
from torch import Tensor

from volgrowth.errors import kind_and_line
from volgrowth.numerics.tangents import noise_stack
from volgrowth.testing.probe import DenoiserProbe, dot, dtype_and_device, level_tensor, relative_distance, rms
from volgrowth.testing.verdict import DenoiserCheck, failure, judged

# of a central difference: the step in units of the noise level, and the error which that leaves, kinks included
STEP = {torch.float64: 1e-4, torch.float32: 3e-3, torch.float16: 1e-1, torch.bfloat16: 1e-1}
DIFFERENCE = {torch.float64: 1e-3, torch.float32: 5e-2, torch.float16: 2e-1, torch.bfloat16: 5e-1}
# below this the difference of two batches of different images is rounding
NOTHING = 1e-6


def check_states(probe: DenoiserProbe) -> DenoiserCheck:
    """Check that `embed` gives states of the promised shape and `render` turns them back into images.

    An audit measures embed(images): the images themselves, or latents.
    """
    probe.embed()
    shape, expected = tuple(probe.clean.shape[1:]), probe.denoiser.image_shape
    if expected is not None and shape != tuple(expected):
        return failure(f"states have shape {shape}", f"expected image_shape {tuple(expected)}: mend one of the two")
    if probe.clean.dtype != probe.images.dtype or not probe.clean.isfinite().all():
        return failure(
            f"states are {dtype_and_device(probe.clean)}",
            f"expected finite {dtype_and_device(probe.images)}: mend `embed`",
        )
    with torch.no_grad():
        rendered = tuple(probe.denoiser.render(probe.clean).shape)
    return judged(
        rendered == tuple(probe.images.shape),
        f"{len(probe.clean)} {'given' if probe.given else 'made up'}, {shape} {dtype_and_device(probe.clean)}",
        f"render gives {rendered}, expected {tuple(probe.images.shape)}: mend `render`",
    )


def check_shape(probe: DenoiserProbe) -> DenoiserCheck:
    """Check that answers have the shape, dtype and device of y, and that y is left as it was.

    Other shapes broadcast into wrong sums, other dtypes lose digits, and an audit uses y again after the call.
    """
    level = probe.middle[0]
    y, given = probe.noisy(level), level_tensor(level)
    before = y.clone()
    for call, of in ((probe.bound(), "__call__"), (probe.bound().noise, "noise")):
        with torch.no_grad():
            out = call(y, given)
        if not isinstance(out, Tensor) or out.shape != y.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            return failure(f"{of} gives {got}", f"expected {tuple(y.shape)}, as y is")
        if out.dtype != y.dtype or out.device != y.device:
            return failure(
                f"{of} gives {dtype_and_device(out)}",
                f"expected {dtype_and_device(y)}, as y is: end with .to(y)",
            )
        if not y.equal(before) or given.item() != level:
            return failure(f"{of} changes y or noise_level", "expected both as they were: nothing in place")
    return DenoiserCheck("ok", f"{tuple(y.shape)} {dtype_and_device(y)} from __call__ and noise")


def check_finite(probe: DenoiserProbe) -> DenoiserCheck:
    """Check that answers are finite on all noise levels and for flat images.

    A row with a NaN gets no score. At the ends of the noise levels this can happen to every row.
    """
    levels = torch.logspace(log10(probe.low), log10(probe.high), 7, dtype=torch.float64).clamp(probe.low, probe.high)
    trials = [(level, probe.noisy(level)) for level in levels.tolist()]
    for level, y in [*trials, (probe.low, probe.clean), (probe.low, torch.zeros_like(probe.clean))]:
        if not (probe.noise(y, level).isfinite().all() and probe.denoised(y, level).isfinite().all()):
            mend = (
                "expected numbers on all of noise_levels: see what is divided by, and narrow noise_levels or clamp it"
            )
            return failure(f"not finite at noise level {level:.3g}", mend)
    return DenoiserCheck("ok", f"at noise levels {probe.low:.3g} to {probe.high:.3g}")


def check_dependence(probe: DenoiserProbe) -> DenoiserCheck:
    """Check that answers depend on y: without that every image would get the same score."""
    for call, of in ((probe.denoised, "__call__"), (probe.noise, "noise")):
        answers = [
            (call(y, level), call(y.roll(1, 0), level)) for level in _levels(probe) for y in [probe.noisy(level)]
        ]
        if all(relative_distance(one, other) < NOTHING for one, other in answers):
            return failure(f"{of} gives the same for any y", "expected the network to see y: pass it on")
    return DenoiserCheck("ok", "other images, other answers")


def check_consistency(probe: DenoiserProbe) -> DenoiserCheck:
    """Check that `noise` and `__call__` agree: an audit measures growth by `noise` and losses by `__call__`."""
    errors = {}
    for level in _levels(probe):
        y = probe.noisy(level)
        noise, denoised = probe.noise(y, level), probe.denoised(y, level)
        errors[level] = rms(denoised - (y - level * noise)) / (rms(y) + level * rms(noise))
    worst = max(errors, key=lambda level: errors[level])
    return judged(
        # one network behind both rounds once, whatever its precision; two of them twice
        errors[worst] <= probe.tolerance / 10,
        f"noise and (y - denoised) / noise_level differ by {errors[worst]:.0e}",
        f"expected the same, and not so at noise level {worst:.3g}: leave `noise` out, or mend its sign and scale",
    )


def _levels(probe: DenoiserProbe) -> list[float]:
    return [probe.low, *probe.middle, probe.high]


def check_levels_per_image(probe: DenoiserProbe) -> DenoiserCheck:
    """Check that noise levels of shape (B,) act on one image each.

    Levels that are broadcast along the wrong axis mix up pixels and images.
    """
    levels = [probe.middle[i % len(probe.middle)] for i in range(len(probe.clean))]
    y = torch.stack([probe.noisy(level)[i] for i, level in enumerate(levels)])
    with torch.no_grad():
        together = probe.bound().noise(y, torch.tensor(levels, dtype=torch.float64))
    single = torch.cat([probe.noise(y[i : i + 1], level, [i]) for i, level in enumerate(levels)])
    error = relative_distance(together, single)
    return judged(
        error <= probe.tolerance,
        f"noise_level of shape (B,) and of shape () differ by {error:.0e}",
        "expected the same: reshape it to (-1, 1, 1, 1) before it meets y, and expand labels to len(y)",
    )


def check_batch(probe: DenoiserProbe) -> DenoiserCheck:
    """Check that the answer for an image does not depend on the rest of the batch.

    Batches change with batch size, order, workers and restarts; scores must not.
    """
    level, rows = probe.middle[-1], list(range(len(probe.clean)))
    y = probe.noisy(level)
    whole = probe.noise(y, level)
    again = {
        "alone": torch.cat([probe.noise(y[i : i + 1], level, [i]) for i in rows]),
        "in another order": probe.noise(y.flip(0), level, rows[::-1]).flip(0),
        "beside another": torch.cat([probe.noise(torch.stack([y[i], -y[i - 1]]), level, [i, i - 1])[:1] for i in rows]),
    }
    errors = {how: relative_distance(whole, noise) for how, noise in again.items()}
    how = max(errors, key=lambda key: errors[key])
    return judged(
        errors[how] <= probe.tolerance,
        f"an image {how} differs by {errors[how]:.0e}",
        "expected the same: call .eval(), take no mean over the batch",
    )


def check_determinism(probe: DenoiserProbe) -> DenoiserCheck:
    """Check that two equal calls give equal answers and leave torch's global random numbers alone.

    With dropout, or with random numbers drawn inside the model, repeating an audit would give other scores.
    """
    level, device = probe.middle[-1], probe.clean.device
    y = probe.noisy(level)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(20_250_321)
        before = _global_state(device)
        first, second = probe.noise(y, level), probe.noise(y, level)
        drawn = not _global_state(device).equal(before)
    error = relative_distance(first, second)
    if error > (0 if device.type == "cpu" else probe.tolerance):
        return failure(f"two calls differ by {error:.0e}", "expected the same: call .eval(), draw nothing inside")
    return judged(
        not drawn,
        "two calls agree" + (", but torch's global random numbers are drawn or seeded" if drawn else ""),
        "expected them untouched, or scores depend on what ran before: draw from a torch.Generator made once",
    )


def _global_state(device: torch.device) -> Tensor:
    """Return the state of torch's global generators on the CPU and on the device."""
    return torch.cat([torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])])


def check_weights(probe: DenoiserProbe) -> DenoiserCheck:
    """Check that weights ask for no gradients: otherwise each step keeps its activations and memory runs out."""
    with torch.enable_grad():
        trainable = probe.bound().noise(probe.noisy(probe.middle[0]), level_tensor(probe.middle[0])).requires_grad
    kept = probe.noise(probe.noisy(probe.middle[0]), probe.middle[0]).requires_grad
    if kept:
        return DenoiserCheck("WARN", "a graph is kept under torch.no_grad", "expected none: no enable_grad inside")
    seen = "ask for gradients" if trainable else "frozen"
    return judged(not trainable, seen, "expected frozen, or memory runs out: call requires_grad_(False)", "WARN")


def check_derivative(probe: DenoiserProbe) -> DenoiserCheck:
    """Check the backward pass of `noise` against a central difference.

    Growth *is* the derivative of `noise`: if it is cut off or rounded, scores are those of another model. The check
    looks at D = y - level * noise: for d = J_D u, taken as a central difference, u . J_D^T d must equal |d|^2.
    """
    for call, of in ((probe.bound(), "__call__"), (probe.bound().noise, "noise")):
        with torch.enable_grad():
            out = call(probe.noisy(probe.middle[0]).requires_grad_(), level_tensor(probe.middle[0]))
        if not out.requires_grad:
            mend = "expected one: no torch.no_grad, inference_mode, detach, .data or numpy inside"
            return failure(f"no gradient from {of} to y", mend)
    u, worst = _direction(probe), 0.0
    for level in probe.middle:
        step = STEP[probe.precision] * level
        ahead, behind = (probe.noisy(level) + side for side in (step * u, -step * u))
        d = u - level * (probe.noise(ahead, level) - probe.noise(behind, level)) / (2 * step)
        back = dot(u, d) - level * dot(u, _pulled(probe, level, d))
        error = (back - dot(d, d)).abs() / dot(d, d).clamp(min=1e-2 * dot(u, u).min().item())
        worst = max(worst, error.nan_to_num(torch.inf).max().item())
    return judged(
        worst <= DIFFERENCE[probe.precision],
        f"backward pass and difference differ by {worst:.0e}, to be judged by {DIFFERENCE[probe.precision]:.0e} in "
        f"{str(probe.precision).removeprefix('torch.')}",
        "expected less: something inside is cut off from the gradient, or rounded more coarsely than that",
    )


def _pulled(probe: DenoiserProbe, level: float, w: Tensor) -> Tensor:
    """Return the gradient of (w . noise) with respect to y."""
    with torch.enable_grad():
        point = probe.noisy(level).requires_grad_()
        return torch.autograd.grad(probe.bound().noise(point, level_tensor(level)), point, w)[0]


def _direction(probe: DenoiserProbe) -> Tensor:
    """Return a direction of rms 1 from each image towards another, which denoisers keep, plus some random noise."""
    u = probe.clean.roll(1, 0) - probe.clean
    u = u / max(rms(u), NOTHING) + 0.3 * probe.draw(u)
    return u / rms(u)


def check_forward_mode(probe: DenoiserProbe) -> DenoiserCheck:
    """Check forward-mode derivatives, which only exact volume (`derivative=jvp`) needs, against the backward pass."""
    level, u, w = probe.middle[-1], _direction(probe), probe.draw(probe.clean)
    try:
        with torch.no_grad():
            pushed = noise_stack(probe.bound(), torch.stack([probe.noisy(level), u], 1), level, "jvp", 1.0)[:, 1]
    except Exception as error:  # torch refuses by operation
        return DenoiserCheck(
            "WARN", f"none ({kind_and_line(error)[:160]})", "derivative=jvp cannot be used; the other one can"
        )
    pulled = _pulled(probe, level, w)
    differ = ((dot(w, pushed) - dot(u, pulled)).abs() / (dot(w, w) * dot(pushed, pushed)).sqrt()).max().item()
    return judged(
        differ <= probe.tolerance,
        f"forward and backward mode differ by {differ:.0e}",
        "expected the same: a detach, or an autograd.Function of your own, that only one of them sees",
    )
