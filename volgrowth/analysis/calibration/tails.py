r"""p-values beyond the held-out images: an upper limit on the tail of their excess.

A conformal p-value is at least 1 / (1 + m) with m held-out images, so among many tests it flags nothing that is rare.
Beyond a high quantile u the excess of almost any population falls off as a generalized Pareto distribution (Pickands,
Annals of Statistics 3, 1975): with shape xi, scale s and y = e - u,

    S(y) = (1 + xi y / s)^(-1 / xi),      S(y) = exp(-y / s) for xi = 0

The likelihood of the n held-out images above u is evaluated on a grid of (xi, s). All pairs whose log likelihood is
within `DROP` of the best are taken as possible, and the largest S(y) among them is the upper limit (profile
likelihood; Coles, An Introduction to Statistical Modeling of Extreme Values, 2001). So the p-value of an image with
excess e > u is at most

    p = (1 + n) / (1 + m) * max S(e - u)

Shapes are at least 0: a negative one would end the tail at a finite excess and give p = 0 beyond it, and a population
that has one only gets larger p-values than it might.

A population need not have its limiting tail at the first quantile: a few unusual kinds of image among many ordinary
ones stand behind a bulk that looks lighter than they are. So the limit is computed beyond several quantiles, each
with at least `FIT_ROWS_LEAST` images above it apart from the first, and the largest limit counts. A quantile is left
out if the images above it lie further out than its own upper limit allows: a one-sided test after Berk and Jones
(Zeitschrift fuer Wahrscheinlichkeitstheorie 47, 1979), the smallest of the probabilities P(U_(k) <= u_k) over the
images in order, where u_k is the limit at the k-th largest image and U_(k) the k-th smallest of n uniform numbers.

With few held-out images the limit is wide: 40 images above u leave shapes up to .4 possible, and nothing far beyond
them is rare. The audited images are many more, nearly all of them are innocent, and an innocent one is exchangeable
with the held-out ones. So where fewer than `FIT_ROWS_LEAST` held-out images lie above the first quantile, the same
limit is computed from the audited images too, and the smaller of the two counts. Memorized images are among them:
the share `CENSORED` that lies furthest out enters the likelihood only by its number. More memorized ones than that
make the tail heavier and p larger. The confidence of this limit is 97.5% in place of 90. The held-out images
must not lie further out than it allows, by the same test: else it is not used, since the audited images are of other
kinds, or few unusual kinds are among both.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

SHARES = (0.1, 0.05, 0.025, 0.0125)
"""Shares of the held-out images that lie above the quantiles from which a tail is fitted."""
ROWS_LEAST = 300
"""Held-out images without which no tail is fitted: fewer than 30 lie above the first quantile."""
FIT_ROWS_LEAST = 250
"""Images above a further quantile: with fewer the upper limit is so wide that it says nothing."""
DROP = 0.821
"""Half of the 80% quantile of chi-squared with one degree of freedom: 90% confidence from one side."""
LEVEL = 0.05
"""Level of the test of fit."""
CENSORED = 0.003
"""Share of the audited images that may be memorized: only that they lie beyond the others is used."""
AUDITED_DROP = 1.921
"""Half of the 95% quantile of chi-squared with one degree of freedom: 97.5% confidence from one side."""
AUDITED_LEAST = 900
"""Audited images between a quantile and the censored ones: with fewer they say nothing that held-out ones do not."""

_SHAPES = np.linspace(0.0, 1.0, 41)
_SCALES = np.exp(np.linspace(-1.5, 0.8, 70))
_FAR = np.concatenate([[0.0], np.geomspace(1e-3, 1e4, 600)])
_TESTED = 1000
_DRAWS = 400


@dataclass(frozen=True)
class TailFit:
    """The tail beyond one quantile.

    Attributes:
        threshold: the quantile u, in units of the excess.
        above: number n of held-out images above it.
        shape: most likely shape.
        scale: most likely scale, in units of the excess.
        fit: p-value of the test of fit.
        distance: distances beyond the threshold, rising from 0, (k,).
        log_survival: upper limit on the logarithm of S at those distances, (k,).
    """

    threshold: float
    above: int
    shape: float
    scale: float
    fit: float
    distance: np.ndarray
    log_survival: np.ndarray

    def survival(self, excess: np.ndarray) -> np.ndarray:
        """Return the upper limit on S, (n,), which is 1 up to the threshold."""
        return np.exp(np.interp(excess - self.threshold, self.distance, self.log_survival))


@dataclass(frozen=True)
class Tail:
    """The tail of the held-out images' excess: an upper limit on the chance to exceed a value.

    Attributes:
        rows: number m of held-out images.
        fits: the tails beyond the quantiles that passed the test of fit, the lowest first.
        refused: shares of the images above the quantiles that failed it.
        audited: the tail of the audited images, whose limit counts where it is smaller; None where held-out images are
            enough, or audited ones too few, or where the held-out ones do not fit it.
    """

    rows: int
    fits: tuple[TailFit, ...]
    refused: tuple[float, ...]
    audited: "Tail | None" = None

    def p_values(self, excess: np.ndarray) -> np.ndarray:
        """Return upper limits on the chance that a held-out image exceeds `excess`, (n,); 1 up to the threshold."""
        limits = [
            np.where(excess > fit.threshold, (1 + fit.above) / (1 + self.rows) * fit.survival(excess), 0.0)
            for fit in self.fits
        ]
        own = np.where(excess > self.fits[0].threshold, np.max(limits, 0), 1.0)
        return own if self.audited is None else np.minimum(own, self.audited.p_values(excess))

    @property
    def threshold(self) -> float:
        """The excess from which on p-values are those of the tail."""
        return self.fits[0].threshold


def fit_tail(excess: np.ndarray, audited: np.ndarray | None = None) -> Tail | None:
    """Fit the tail of the held-out images' excess.

    Args:
        excess: of the m distinct held-out images, (m,).
        audited: of distinct audited images, or a sample of them, each by a regression that it did not help to fit, as
            the held-out ones, (n,); None where they are not all measured.

    Returns:
        None if there are fewer than `ROWS_LEAST` images, or the test refused the fit beyond every quantile.
    """
    rows, ordered = len(excess), np.sort(excess)
    if rows < ROWS_LEAST:
        return None
    fits, refused = list[TailFit](), list[float]()
    for share in SHARES:
        above = round(share * rows)
        if share != SHARES[0] and above < FIT_ROWS_LEAST:
            break
        fit = _fit(float(ordered[-above - 1]), ordered[-above:])
        if fit is None or fit.fit <= LEVEL:
            refused.append(share)
        else:
            fits.append(fit)
    if not fits:
        return None
    beside = _fit_audited(audited, excess) if audited is not None and wants_audited(rows) else None
    return Tail(rows, tuple(fits), tuple(refused), beside)


def wants_audited(rows: int) -> bool:
    """Say whether so many held-out images are enough for a tail, and so few that audited ones narrow it."""
    return rows >= ROWS_LEAST and round(SHARES[0] * rows) < FIT_ROWS_LEAST


def _fit_audited(audited: np.ndarray, held: np.ndarray) -> Tail | None:
    """Fit the tail of the audited images; None if they are too few, or if the held-out ones lie further out."""
    rows, ordered, fits = len(audited), np.sort(audited), list[TailFit]()
    hidden = round(CENSORED * rows)
    for share in SHARES:
        above = round(share * rows)
        if above - hidden < AUDITED_LEAST:
            break
        fit = _fit(float(ordered[-above - 1]), ordered[-above : rows - hidden], hidden, AUDITED_DROP)
        if fit is None:
            return None
        fits.append(fit)
    if not fits:
        return None
    tail, tested = Tail(rows, tuple(fits), ()), _tested(len(held))
    fit_of_held = _fit_p_value(np.sort(tail.p_values(held))[:tested], len(held))
    if fit_of_held <= LEVEL:
        return None
    return replace(tail, fits=tuple(replace(fit, fit=fit_of_held) for fit in fits))


def _fit(threshold: float, beyond: np.ndarray, hidden: int = 0, drop: float = DROP) -> TailFit | None:
    """Fit the tail of the values beyond a threshold; None if it is -infinity, or most of them are ties.

    Args:
        threshold: the quantile u.
        beyond: the values above it, sorted.
        hidden: how many more are only known to be at least as large as all of these.
        drop: how far below the best the log likelihood of what is possible may be.
    """
    above = len(beyond) + hidden
    if not np.isfinite(threshold) or 2 * len(np.unique(beyond[beyond > threshold])) < len(beyond):
        return None
    y = beyond - threshold
    mean = float(y.sum() + hidden * y[-1]) / len(y)
    scales = mean * _SCALES
    likelihood = np.stack([_log_likelihood(y, shape, scales) for shape in _SHAPES])
    if hidden:
        likelihood += hidden * _log_survival(y[-1], _SHAPES[:, None], scales)
    best = np.unravel_index(likelihood.argmax(), likelihood.shape)
    shape, scale = np.nonzero(likelihood >= likelihood[best] - drop)
    distance = mean * _FAR
    log_survival = _log_survival(distance[:, None], _SHAPES[shape], scales[scale]).max(1)
    fit = TailFit(threshold, above, float(_SHAPES[best[0]]), float(scales[best[1]]), 1.0, distance, log_survival)
    if hidden:  # it is the held-out images that must fit it
        return fit
    limits = np.sort(fit.survival(beyond))[: _tested(above)]
    return replace(fit, fit=_fit_p_value(limits, above))


def _log_likelihood(y: np.ndarray, shape: float, scales: np.ndarray) -> np.ndarray:
    """Return the log likelihood of values y for each scale, (scales,)."""
    if shape == 0:
        return -len(y) * np.log(scales) - y.sum() / scales
    return -len(y) * np.log(scales) - (1 + 1 / shape) * np.log1p(shape * y[:, None] / scales).sum(0)


def _log_survival(y: np.ndarray, shape: np.ndarray, scale: np.ndarray) -> np.ndarray:
    z, some = y / scale, np.where(shape > 0, shape, 1.0)
    return np.where(shape > 0, -np.log1p(shape * z) / some, -z)


def _fit_p_value(limits: np.ndarray, count: int) -> float:
    """Return the p-value of the test of fit, for the smallest of `count` survival limits, sorted."""
    drawn = _fit_statistics(count)
    return float(1 + np.searchsorted(drawn, _fit_statistic(limits, count), side="right")) / (1 + len(drawn))


def _tested(count: int) -> int:
    """Return how many of the outermost images the test looks at: a quarter, since p-values are those further out."""
    return min(max(count // 4, 5), _TESTED)


def _fit_statistic(smallest: np.ndarray, count: int) -> np.ndarray:
    """Return min over k of P(U_(k) <= u_k), from the smallest of `count` values u, sorted along the last axis."""
    from scipy.special import betainc  # a tenth of a second to import, and only an analysis needs it

    k = np.arange(1, smallest.shape[-1] + 1)
    return betainc(k, count - k + 1, smallest).min(-1)


@lru_cache(8)
def _fit_statistics(count: int) -> np.ndarray:
    """Return the statistic for uniform numbers, `_DRAWS` times, sorted."""
    random, tested = np.random.default_rng(count), _tested(count)
    smallest = random.standard_exponential((_DRAWS, tested)).cumsum(1)
    total = smallest[:, -1:] + random.standard_gamma(count + 1 - tested, (_DRAWS, 1))
    return np.sort(_fit_statistic(smallest / total, count))
