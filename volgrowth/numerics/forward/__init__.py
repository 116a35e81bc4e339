r"""Forward mode at the price of a difference: a point and k tangents go through a network as one batch.

For y = f(x) and tangents u_1..u_k at x, the *rows* (f(x), f'(x) u_1, ..., f'(x) u_k) of an operation follow from the
rows (x, u_1, ..., u_k) of its input. A `Dual` is a tensor that shows the network the shape and type of x, and carries
the rows:

    linear f          the rows of f are f of the rows; an offset is added to row 0 only
    bilinear f        f(x, z), f(u, z) + f(x, w)
    elementwise f     f(x), f'(x) * u, by the kernel that multiplies a gradient by f'
    norms, softmax    f(x), and the symmetric part of their Jacobian by their own backward kernels
    attention         the product rule in blocks of queries (`attention`)

so that a linear map runs once, on 1 + k times the batch. An operation that has no rule is differentiated by
`torch.func.jvp`, alone, with the tangents mapped over it by `torch.func.vmap`, and the log says so once. The
Jacobian is that of what is computed: `detach` hides nothing.
"""

from volgrowth.numerics.forward import arithmetic, attention, layers, shapes  # noqa: F401 - they enter their rules
from volgrowth.numerics.forward.dual import NoDerivative, pushforward, say_once

__all__ = ["NoDerivative", "pushforward", "say_once"]
