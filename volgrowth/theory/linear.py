r"""The linear one-step denoiser: a generative model in closed form (arXiv 2411.17807).

Data are N(0, v I) in D dimensions, of which n samples x_k are known. A linear denoiser y -> W y at the noise level s is
fitted to them, and one step makes an image of noise, W y with y ~ N(0, (v + s^2) I). Two fits differ in how often each
sample is seen:

    once, with the noise e_k       W = X^T Y (Y^T Y)^+          with Y = X + s e: least squares, of least norm if n < D
    with every noise               W = S (S + s^2 I)^-1         with S = X^T X / n: the denoiser of a Gaussian

What is generated is Gaussian with covariance (v + s^2) W W^T. With noise of the level q on both, so that neither is
flat, its divergence from the data is, by the eigenvalues c_i of ((v + s^2) W W^T + q^2 I) / (v + q^2),

    KL(generated || data) = 1/2 sum_i (c_i - 1 - log c_i)       nats

The first fit interpolates its n noisy samples until n = D, where Y is worst conditioned: the divergence is largest
there and falls from there on. The second has no such peak. For n to infinity W goes to v / (v + s^2) I, c_i not to 1:
one step from the level s takes off too much.

The volume along the flow of the second grows by 1/2 sum_i log((lambda_i + s_1^2) / (lambda_i + s_0^2)), lambda_i the
eigenvalues of S: the same for every image, so growth says nothing of any image under a linear model.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Matrix = Float[Tensor, "D D"]


def seen_once(data: Float[Tensor, "n D"], noise: Float[Tensor, "n D"], noise_level: float) -> Matrix:
    """W of the fit in which each sample has one noise of unit scale."""
    noisy = data + noise_level * noise
    return (torch.linalg.pinv(noisy) @ data).T


def seen_always(data: Float[Tensor, "n D"], noise_level: float) -> Matrix:
    """W of the fit in which each sample has every noise: that of a `LinearDenoiser` whose data have mean 0."""
    covariance = data.T @ data / len(data)
    return torch.linalg.solve(covariance + noise_level**2 * torch.eye(len(covariance)).to(data), covariance)


def divergence(weights: Matrix, noise_level: float, variance: float = 1.0, blur: float = 0.1) -> float:
    """KL(generated || data) of one step from `noise_level`, nats per dimension, both with noise of level `blur`."""
    generated = (variance + noise_level**2) * weights @ weights.T
    values = (torch.linalg.eigvalsh(generated).clamp(min=0) + blur**2) / (variance + blur**2)
    return float((values - 1 - values.log()).mean() / 2)


def divergence_of_all(noise_level: float, variance: float = 1.0, blur: float = 0.1) -> float:
    """The limit of `divergence` for more and more samples."""
    weights = variance / (variance + noise_level**2) * torch.eye(1, dtype=torch.float64)
    return divergence(weights, noise_level, variance, blur)
