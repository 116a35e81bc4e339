"""Sums of parts of the evidence, judged as an audit judges its own sum."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from volgrowth.analysis.calibration.error_rates import q_values
from volgrowth.analysis.calibration.expected_scores import Excess, ScoredImages, learn, spread_of, usable
from volgrowth.analysis.calibration.p_values import held_out_p_values
from volgrowth.analysis.calibration.tails import fit_tail


@dataclass(frozen=True)
class PartExcess:
    """What each part shows beyond expectation of n audited and m held-out images, by the part's name.

    Attributes:
        audited: excess of each audited image in each fold, (FOLDS, n).
        held: excess of each held-out image in its own fold, (m,).
        tail: unit of a part as an audit takes it.
        spread: spread of the held-out images.
        fold: fold of each held-out image, (m,).
        content: content hash of each audited image, (n,).
    """

    audited: Mapping[str, np.ndarray]
    held: Mapping[str, np.ndarray]
    tail: Mapping[str, float]
    spread: Mapping[str, float]
    fold: np.ndarray
    content: np.ndarray

    @classmethod
    def of(cls, parts: Mapping[str, tuple[ScoredImages, ScoredImages]]) -> "PartExcess":
        """Learn what is expected of each part, given the audited and the held-out images with their scores."""
        first, known = next(iter(parts.values()))
        rows = usable(known, np.isin(known.content, first.content)).rows
        learnt = {name: learn(held, rows) for name, (_, held) in parts.items()}
        excess = {
            name: np.stack([some.score - predict(some.features[:]) for predict in one.predictors(len(some.score))])
            for (name, (some, _)), one in zip(parts.items(), learnt.values(), strict=True)
        }
        return cls(
            excess,
            {name: one.held for name, one in learnt.items()},
            {name: one.unit for name, one in learnt.items()},
            {name: one.residual_spread for name, one in learnt.items()},
            next(iter(learnt.values())).fold,
            first.content,
        )

    def judged(self, weights: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """Return evidence and q-value of each audited image by the weighted sum of some parts, both (n,)."""
        held = np.sum([weight * self.held[name] for name, weight in weights.items()], 0)
        audited = np.sum([weight * self.audited[name] for name, weight in weights.items()], 0)
        spread = spread_of(held)
        p_value = held_out_p_values(Excess(audited / spread, held / spread, self.fold), fit_tail(held / spread)).used
        return audited.mean(0) / spread, q_values(p_value, self.content)
