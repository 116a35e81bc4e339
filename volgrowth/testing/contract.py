"""What code can break: shapes, batches, randomness, gradients. Each docstring says what that does to an audit."""

from math import log10

import torch
from torch import Tensor

from volgrowth.numerics.tangents import noise_stack
from volgrowth.testing.bench import Bench, apart, dot, name, rms, scalar
from volgrowth.testing.verdict import Check, judged, reason

# of a central difference: the step in units of the noise level, and the error which that leaves, kinks included
STEP = {torch.float64: 1e-4, torch.float32: 3e-3, torch.float16: 1e-1, torch.bfloat16: 1e-1}
DIFFERENCE = {torch.float64: 1e-3, torch.float32: 5e-2, torch.float16: 2e-1, torch.bfloat16: 5e-1}
# below this the difference of two batches of different images is rounding
NOTHING = 1e-6


def states(bench: Bench) -> Check:
    """An audit measures embed(images): the images themselves, or latents."""
    bench.embed()
    shape, expected = tuple(bench.clean.shape[1:]), bench.denoiser.image_shape
    if expected is not None and shape != tuple(expected):
        return Check(
            "FAIL", f"states have shape {shape}", f"expected image_shape {tuple(expected)}: mend one of the two"
        )
    if bench.clean.dtype != bench.images.dtype or not bench.clean.isfinite().all():
        return Check("FAIL", f"states are {name(bench.clean)}", f"expected finite {name(bench.images)}: mend `embed`")
    with torch.no_grad():
        rendered = tuple(bench.denoiser.render(bench.clean).shape)
    return judged(
        rendered == tuple(bench.images.shape),
        f"{len(bench.clean)} {'given' if bench.given else 'made up'}, {shape} {name(bench.clean)}",
        f"render gives {rendered}, expected {tuple(bench.images.shape)}: mend `render`",
    )


def shape(bench: Bench) -> Check:
    """Other shapes broadcast into wrong sums, other dtypes lose digits; y is used again after the call."""
    level = bench.middle[0]
    y, given = bench.noisy(level), scalar(level)
    before = y.clone()
    for call, of in ((bench.bound(), "__call__"), (bench.bound().noise, "noise")):
        with torch.no_grad():
            out = call(y, given)
        if not isinstance(out, Tensor) or out.shape != y.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            return Check("FAIL", f"{of} gives {got}", f"expected {tuple(y.shape)}, as y is")
        if out.dtype != y.dtype or out.device != y.device:
            return Check("FAIL", f"{of} gives {name(out)}", f"expected {name(y)}, as y is: end with .to(y)")
        if not y.equal(before) or given.item() != level:
            return Check("FAIL", f"{of} changes y or noise_level", "expected both as they were: nothing in place")
    return Check("ok", f"{tuple(y.shape)} {name(y)} from __call__ and noise")


def finite(bench: Bench) -> Check:
    """A NaN is a row without a score; where noise levels end, or an image is flat, all rows can be that."""
    levels = torch.logspace(log10(bench.low), log10(bench.high), 7, dtype=torch.float64).clamp(bench.low, bench.high)
    trials = [(level, bench.noisy(level)) for level in levels.tolist()]
    for level, y in [*trials, (bench.low, bench.clean), (bench.low, torch.zeros_like(bench.clean))]:
        if not (bench.noise(y, level).isfinite().all() and bench.denoised(y, level).isfinite().all()):
            mend = (
                "expected numbers on all of noise_levels: see what is divided by, and narrow noise_levels or clamp it"
            )
            return Check("FAIL", f"not finite at noise level {level:.3g}", mend)
    return Check("ok", f"at noise levels {bench.low:.3g} to {bench.high:.3g}")


def dependence(bench: Bench) -> Check:
    """What ignores y has no growth: every image would get the score of a constant."""
    for call, of in ((bench.denoised, "__call__"), (bench.noise, "noise")):
        answers = [
            (call(y, level), call(y.roll(1, 0), level)) for level in _levels(bench) for y in [bench.noisy(level)]
        ]
        if all(apart(one, other) < NOTHING for one, other in answers):
            return Check("FAIL", f"{of} gives the same for any y", "expected the network to see y: pass it on")
    return Check("ok", "other images, other answers")


def consistency(bench: Bench) -> Check:
    """Growth is measured by `noise`, and what `__call__` says is taken for the same model."""
    errors = {}
    for level in _levels(bench):
        y = bench.noisy(level)
        noise, denoised = bench.noise(y, level), bench.denoised(y, level)
        errors[level] = rms(denoised - (y - level * noise)) / (rms(y) + level * rms(noise))
    worst = max(errors, key=lambda level: errors[level])
    return judged(
        # one network behind both rounds once, whatever its precision; two of them twice
        errors[worst] <= bench.tolerance / 10,
        f"noise and (y - denoised) / noise_level differ by {errors[worst]:.0e}",
        f"expected the same, and not so at noise level {worst:.3g}: leave `noise` out, or mend its sign and scale",
    )


def _levels(bench: Bench) -> list[float]:
    return [bench.low, *bench.middle, bench.high]


def per_image(bench: Bench) -> Check:
    """Levels of shape (B,) are part of the contract; broadcast along the wrong axis they mix up pixels and images."""
    levels = [bench.middle[i % len(bench.middle)] for i in range(len(bench.clean))]
    y = torch.stack([bench.noisy(level)[i] for i, level in enumerate(levels)])
    with torch.no_grad():
        together = bench.bound().noise(y, torch.tensor(levels, dtype=torch.float64))
    single = torch.cat([bench.noise(y[i : i + 1], level, [i]) for i, level in enumerate(levels)])
    error = apart(together, single)
    return judged(
        error <= bench.tolerance,
        f"noise_level of shape (B,) and of shape () differ by {error:.0e}",
        "expected the same: reshape it to (-1, 1, 1, 1) before it meets y, and expand labels to len(y)",
    )


def batch(bench: Bench) -> Check:
    """An image's neighbours change with batch size, order, workers and restarts; its score must not."""
    level, rows = bench.middle[-1], list(range(len(bench.clean)))
    y = bench.noisy(level)
    whole = bench.noise(y, level)
    again = {
        "alone": torch.cat([bench.noise(y[i : i + 1], level, [i]) for i in rows]),
        "in another order": bench.noise(y.flip(0), level, rows[::-1]).flip(0),
        "beside another": torch.cat([bench.noise(torch.stack([y[i], -y[i - 1]]), level, [i, i - 1])[:1] for i in rows]),
    }
    errors = {how: apart(whole, noise) for how, noise in again.items()}
    how = max(errors, key=lambda key: errors[key])
    return judged(
        errors[how] <= bench.tolerance,
        f"an image {how} differs by {errors[how]:.0e}",
        "expected the same: call .eval(), take no mean over the batch",
    )


def determinism(bench: Bench) -> Check:
    """The same audit gives the same table: with dropout, or draws of the model's own, a score is one too."""
    level, device = bench.middle[-1], bench.clean.device
    y = bench.noisy(level)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(20_250_321)
        before = _global_state(device)
        first, second = bench.noise(y, level), bench.noise(y, level)
        drawn = not _global_state(device).equal(before)
    error = apart(first, second)
    if error > (0 if device.type == "cpu" else bench.tolerance):
        return Check("FAIL", f"two calls differ by {error:.0e}", "expected the same: call .eval(), draw nothing inside")
    return judged(
        not drawn,
        "two calls agree" + (", but torch's global random numbers are drawn or seeded" if drawn else ""),
        "expected them untouched, or scores depend on what ran before: draw from a torch.Generator made once",
    )


def _global_state(device: torch.device) -> Tensor:
    """Of torch's generators on the CPU and on the device."""
    return torch.cat([torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])])


def weights(bench: Bench) -> Check:
    """Weights that ask for gradients make each step keep its activations: memory runs out, scores stay right."""
    with torch.enable_grad():
        trainable = bench.bound().noise(bench.noisy(bench.middle[0]), scalar(bench.middle[0])).requires_grad
    kept = bench.noise(bench.noisy(bench.middle[0]), bench.middle[0]).requires_grad
    if kept:
        return Check("WARN", "a graph is kept under torch.no_grad", "expected none: no enable_grad inside")
    seen = "ask for gradients" if trainable else "frozen"
    return judged(not trainable, seen, "expected frozen, or memory runs out: call requires_grad_(False)", "WARN")


def derivative(bench: Bench) -> Check:
    """Growth *is* the derivative of `noise`: cut off or rounded, scores are those of another model.

    It is seen through D = y - level noise: with d = J_D u by a central difference, u . J_D^T d must be |d|^2.
    """
    for call, of in ((bench.bound(), "__call__"), (bench.bound().noise, "noise")):
        with torch.enable_grad():
            out = call(bench.noisy(bench.middle[0]).requires_grad_(), scalar(bench.middle[0]))
        if not out.requires_grad:
            mend = "expected one: no torch.no_grad, inference_mode, detach, .data or numpy inside"
            return Check("FAIL", f"no gradient from {of} to y", mend)
    u, worst = _direction(bench), 0.0
    for level in bench.middle:
        step = STEP[bench.precision] * level
        ahead, behind = (bench.noisy(level) + side for side in (step * u, -step * u))
        d = u - level * (bench.noise(ahead, level) - bench.noise(behind, level)) / (2 * step)
        back = dot(u, d) - level * dot(u, _pulled(bench, level, d))
        error = (back - dot(d, d)).abs() / dot(d, d).clamp(min=1e-2 * dot(u, u).min().item())
        worst = max(worst, error.nan_to_num(torch.inf).max().item())
    return judged(
        worst <= DIFFERENCE[bench.precision],
        f"backward pass and difference differ by {worst:.0e}, to be judged by {DIFFERENCE[bench.precision]:.0e} in "
        f"{str(bench.precision).removeprefix('torch.')}",
        "expected less: something inside is cut off from the gradient, or rounded more coarsely than that",
    )


def _pulled(bench: Bench, level: float, w: Tensor) -> Tensor:
    """w carried back through `noise` to y."""
    with torch.enable_grad():
        point = bench.noisy(level).requires_grad_()
        return torch.autograd.grad(bench.bound().noise(point, scalar(level)), point, w)[0]


def _direction(bench: Bench) -> Tensor:
    """From each image towards another, which denoisers keep, and a little of everything; rms 1."""
    u = bench.clean.roll(1, 0) - bench.clean
    u = u / max(rms(u), NOTHING) + 0.3 * bench.draw(u)
    return u / rms(u)


def forward_mode(bench: Bench) -> Check:
    """Volume by exact derivatives differentiates forwards; the standard preset only backwards."""
    level, u, w = bench.middle[-1], _direction(bench), bench.draw(bench.clean)
    try:
        with torch.no_grad():
            pushed = noise_stack(bench.bound(), torch.stack([bench.noisy(level), u], 1), level, "jvp", 1.0)[:, 1]
    except Exception as error:  # torch refuses by operation
        return Check("WARN", f"none ({reason(error)})", "derivative=jvp cannot be used; the other one can")
    pulled = _pulled(bench, level, w)
    differ = ((dot(w, pushed) - dot(u, pulled)).abs() / (dot(w, w) * dot(pushed, pushed)).sqrt()).max().item()
    return judged(
        differ <= bench.tolerance,
        f"forward and backward mode differ by {differ:.0e}",
        "expected the same: a detach, or an autograd.Function of your own, that only one of them sees",
    )
