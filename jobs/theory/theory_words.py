"""What the page of the theory says beside its measurements."""

BEFORE = """# Theory: models of which it is known what they memorize

Of a trained network nobody knows what it has memorized; one samples, and counts. There are models of which it is
known: where every sample ends follows from a formula. They are here as code (`volgrowth.theory`), so that the scores
of an audit can be held against truth, and to teach what a score can see and what it cannot.

Everything below was measured in float64, unless it says otherwise, and written by

    python jobs/theory.py --output theory

where `--only NAME` runs a part: `flows`, `trained`, `audit`, `mixtures`, `inertia`, `linear`. The facts that are
exact are tests as well: `pytest tests/theory`.

## What follows for an audit

- **High growth means: the model collapses noise to this image. It does not mean that the image was trained on.** The
  exact networks below collapse to sums of training images just as hard, and every score that looks where the network
  interpolates ties there. An audit scores the images of a training set, where this cannot mislead; flagging
  *generated* images by growth alone can.
- **Low growth at a training image is good news about that image.** Points that a model merely passes through on its
  manifold keep directions in which they grow less, and this is where growth separates best.
- **Growth does not say how often an image comes out.** B = growth + log p_T, the log likelihood of preset `volume`,
  does in exact models. On trained networks its value is off by many nats: take it as a rank. Raw growth is highest at
  outliers, which is why an audit calibrates it.
- **More data, less memorization, and no threshold**: in the closed form the share of memorized samples falls smoothly
  with the number of training images, as Phi(a)^(N - 1).
- **Stopping a sampler early hides copies and does not remove them.** What the network has memorized stays in it, and
  the samples are off the data. Verify with the sampler that will be used, and curate the data.
- **A linear model shows the same growth at every image.** If an audit's growth has no spread, the model has hardly
  learnt more than the covariance of its data.
"""

WORDS = {
    "flows": """
Source: Zeno et al., [arXiv 2506.19031](https://arxiv.org/abs/2506.19031). Points x_0, x_1 ... x_N whose directions
u_n = (x_n - x_0) / l_n, l_n = |x_n - x_0|, are at 90 degrees or more to each other. The shallow ReLU network that
sends every ball of radius rho around a point back to it, with the smallest weights, is

    h(y) = x_0 + sum_n u_n phi_n(u_n . (y - x_0))
    phi_n(t) = l_n / (l_n - 2 rho) ([t - rho]_+ - [t - (l_n - rho)]_+),        rho < min l / 2

as `vg.MinNormDenoiser(points, margin)` with rho = margin · noise level. Beyond that level, where rho reaches half of
the shortest edge, no network interpolates: it refuses, and `HybridDenoiser` puts the exact posterior mean there.

*Score flow*, dy/dr = h(y) - y at one rho. Along an edge 0 and l attract at rate 1, l/2 repels at rate 2 rho / (l - 2
rho). Orthogonal data: all corners of the box, the sums of training points, are stable, and a flow ends at the one
nearest to its start. Obtuse data: the sum over I is stable iff sum over m in I without n of |u_n . u_m| l_m <= rho
for every n in I.

*Probability flow*, dy/dr = h_rho(r)(y) - y with r = log(sigma_T / sigma). For orthogonal data phi_n(t_n) stays what
it is, so the flow is the straight line y = h + (sigma / sigma_T) (y_T - h), and ends at a corner iff T >= tau = max_n
[min(t_n, l_n - t_n)_+ / a]², T = sigma_T² and a the margin. Otherwise it ends between corners, on the *manifold*. The
derivation is in the docstring of `volgrowth.theory.end_points`.

*Hybrid flow.* Arrived near x_k with noise sigma, each of the N - 1 coordinates is off its ramp with probability
Phi(a), so Phi(a)^(N - 1) of the samples end at a training point. The formula is for a single sigma at which all
points are apart.
""",
    "trained": """
Does training find the closed form? Networks h(y) = sum_k a_k [w_k . y + b_k]_+ + V y + c on noisy copies of the
points, with the least sum of |a_k|² + |w_k|²; an augmented Lagrangian keeps the fit exact where weight decay would
give it up (`volgrowth.theory.shallow`). The source counts the sums of two, three and four points that stay where they
are when the denoiser is iterated: 98.6%, 83.5% and 25.4%.
""",
    "audit": """
Between noise levels s_0 and s_T a direction off the ramps grows by s_T / s_0; one on a ramp *shrinks*, by (l - 2 a
s_T) / (l - 2 a s_0). In D dimensions, with k coordinates between the ends of their edges,

    growth = (D - k) log(s_T / s_0) + sum over those k of log((l - 2 a s_T) / (l - 2 a s_0))

so every corner, training point or not, has D log(s_T / s_0), as a point mass. By Liouville B = growth + log p_T(x_T)
is the log density that samples have at x, p_T the training points blurred by s_T. The share of samples that end at a
corner, its basin mass, is a sum of products of normal probabilities (`jobs.theory.seen`).
""",
    "mixtures": """
A network of unlimited capacity learns the exact posterior mean of its finite training set, `vg.EmpiricalDenoiser`.
Its flow ends at training points only, at each as often as it has copies, so the basin mass is known. log p(x) =
growth + log p_T(x_T) is exact.
""",
    "inertia": """
Source: [arXiv 2505.02508](https://arxiv.org/abs/2505.02508). Stop the flow at the level s_b and take one step along
the score, x = y + s_b² score(y, s_b) = E[x_0 | y, s_b]: `volgrowth.theory.inertia_sample`, which is the sampler of
`verify` on levels that end at s_b. The exact model of a finite set then gives means of training points within about
s_b, not the points. On a circle of radius 1 the mean of an arc of that width lies s_b² / 2 inside.
""",
    "linear": """
Source: Halder, [arXiv 2411.17807](https://arxiv.org/abs/2411.17807). A denoiser y -> W y, and one step from noise.
Everything is Gaussian, so the divergence of what is generated has a closed form (`volgrowth.theory.linear`); the
abstract states that it falls from n = D samples on. The volume grows by 1/2 sum_i log((lambda_i + s_1²) / (lambda_i +
s_0²)) around *every* image, lambda_i the variances of the data.
""",
}

AFTER = """## What has no part here

Work on *training samplers* stands beside these papers in reading lists: Boltzmann samplers and neural samplers of
unnormalised densities, GFlowNets, scoring-rule inference. They have no part in an audit, for one reason each. A
Boltzmann sampler learns from an energy: there is no training set, so nothing that could be memorized, and no row to
flag. A GFlowNet learns from a reward, with the same consequence; its question is whether modes are missed, not
whether images are copied. Scoring-rule inference (energy scores, kernel scores) changes the loss by which a generator
is trained. Whatever the loss, the trained model is audited as it is, through its denoiser; and where a generator has
no denoiser and no flow, growth is not defined for it.

Attribution, which training images a flagged image came from, is another question than whether it is memorized.
"""
