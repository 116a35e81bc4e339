r"""Forward-mode derivatives at the cost of a finite difference: a point and k tangents pass a network as one batch.

For y = f(x) and tangents u_1..u_k at x, the *rows* of the result, (f(x), f'(x) u_1, ..., f'(x) u_k), follow from the
rows of the input, (x, u_1, ..., u_k). A `Dual` is a tensor that has the shape and dtype of x for the network, and
carries the rows. A *rule* computes the rows of one operation:

    linear f          the rows of f are f of the rows; an offset is added to row 0 only
    bilinear f        f(x, z), f(u, z) + f(x, w)
    elementwise f     f(x), f'(x) * u, by the kernel that multiplies a gradient by f'
    norms, softmax    f(x), and the symmetric part of their Jacobian by their own backward kernels
    attention         the product rule in blocks of queries (`attention`)

so that a linear map runs once, on 1 + k times the batch. An operation without a rule is differentiated on its own by
`torch.func.jvp`, with the tangents mapped over it by `torch.func.vmap`, and the log says so once. The Jacobian is that
of the computation as it runs, so `detach` does not stop a tangent.
"""

from volgrowth.numerics.forward import arithmetic, attention, layers, shapes  # noqa: F401 - they enter their rules
from volgrowth.numerics.forward.dual import NoDerivative, pushforward, say_once

__all__ = ["NoDerivative", "pushforward", "say_once"]
