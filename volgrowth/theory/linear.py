r"""The linear one-step denoiser: a generative model whose distance from the data has a closed form (arXiv 2411.17807).

Data are N(0, v I) in D dimensions, of which n samples x_k are known. A linear denoiser y -> W y at the noise level s is
fitted to them. One step generates W y from noise y ~ N(0, (v + s^2) I). Two fits differ in the noises that each sample
is seen with:

    once, with the noise e_k       W = X^T Y (Y^T Y)^+          with Y = X + s e: least squares, of least norm if n < D
    with every noise               W = S (S + s^2 I)^-1         with S = X^T X / n: the denoiser of a Gaussian

The generated distribution is Gaussian with covariance (v + s^2) W W^T. Noise of level q is added to it and to the data,
so that neither is degenerate. With c_i the eigenvalues of ((v + s^2) W W^T + q^2 I) / (v + q^2), its divergence from
the data is

    KL(generated || data) = 1/2 sum_i (c_i - 1 - log c_i)       nats

The first fit interpolates its n noisy samples until n = D, where Y is worst conditioned: the divergence is largest
there and falls as n grows further. The second has no such peak. For n to infinity W goes to v / (v + s^2) I while c_i
does not go to 1: one step from the level s removes too much.

The log volume along the flow of the second fit grows by 1/2 sum_i log((lambda_i + s_1^2) / (lambda_i + s_0^2)) with
lambda_i the eigenvalues of S. That is the same for every image, so growth under a linear model does not tell images
apart.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Matrix = Float[Tensor, "D D"]


def seen_once(data: Float[Tensor, "n D"], noise: Float[Tensor, "n D"], noise_level: float) -> Matrix:
    """Return W of the fit that sees each sample of `data` with one noise of unit scale."""
    noisy = data + noise_level * noise
    return (torch.linalg.pinv(noisy) @ data).T


def seen_always(data: Float[Tensor, "n D"], noise_level: float) -> Matrix:
    """Return W of the fit that sees every noise: the matrix of a `LinearDenoiser` on data of mean 0."""
    covariance = data.T @ data / len(data)
    return torch.linalg.solve(covariance + noise_level**2 * torch.eye(len(covariance)).to(data), covariance)


def divergence(weights: Matrix, noise_level: float, variance: float = 1.0, blur: float = 0.1) -> float:
    """Return KL(generated || data) per dimension of one step with the matrix W, in nats.

    Args:
        weights: W.
        noise_level: s, the level that the step starts from.
        variance: v of the data.
        blur: q, the level of the noise that is added to both distributions.
    """
    generated = (variance + noise_level**2) * weights @ weights.T
    values = (torch.linalg.eigvalsh(generated).clamp(min=0) + blur**2) / (variance + blur**2)
    return float((values - 1 - values.log()).mean() / 2)


def divergence_of_all(noise_level: float, variance: float = 1.0, blur: float = 0.1) -> float:
    """Return the limit of `divergence` for an infinite number of samples."""
    weights = variance / (variance + noise_level**2) * torch.eye(1, dtype=torch.float64)
    return divergence(weights, noise_level, variance, blur)
