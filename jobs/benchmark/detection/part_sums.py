"""Sums of parts of the evidence, judged as an audit judges its own sum."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from volgrowth.analysis.calibration.error_rates import q_values
from volgrowth.analysis.calibration.expected_scores import Excess, ScoredImages, learn, spread_of, tail_spread, usable
from volgrowth.analysis.calibration.p_values import held_out_p_values
from volgrowth.analysis.calibration.tails import fit_tail


@dataclass(frozen=True)
class PartExcess:
    """What each part shows beyond expectation of n audited and m held-out images, by the part's name.

    Attributes:
        audited: excess of each audited image in each fold, in the unit that an audit takes for it, (FOLDS, n).
        held: excess of each held-out image in its own fold, in its unit, (m,).
        raw_audited, raw_held: the same in the score's own unit.
        widest: the widest unit of a held-out image over that of most images.
        fold: fold of each held-out image, (m,).
        content: content hash of each audited image, (n,).
    """

    audited: Mapping[str, np.ndarray]
    held: Mapping[str, np.ndarray]
    raw_audited: Mapping[str, np.ndarray]
    raw_held: Mapping[str, np.ndarray]
    widest: Mapping[str, float]
    fold: np.ndarray
    content: np.ndarray

    @classmethod
    def of(cls, parts: Mapping[str, tuple[ScoredImages, ScoredImages]]) -> "PartExcess":
        """Learn what is expected of each part, given the audited and the held-out images with their scores."""
        first, known = next(iter(parts.values()))
        rows = usable(known, np.isin(known.content, first.content)).rows
        learnt = {name: learn(held, rows) for name, (_, held) in parts.items()}
        count = len(first.content)
        judged = {name: one.expectation(count).by_each_fold(parts[name][0]) for name, one in learnt.items()}
        return cls(
            {name: excess for name, (_, excess) in judged.items()},
            {name: one.held for name, one in learnt.items()},
            {name: parts[name][0].score - expected for name, (expected, _) in judged.items()},
            {name: (parts[name][1].score - one.expected)[rows] for name, one in learnt.items()},
            {name: one.widest_unit / one.unit for name, one in learnt.items()},
            next(iter(learnt.values())).fold,
            first.content,
        )

    @property
    def spread(self) -> dict[str, float]:
        """The spread of each part's excess among the held-out images."""
        return {name: spread_of(held) for name, held in self.raw_held.items()}

    @property
    def tail(self) -> dict[str, float]:
        """The spread of each part's excess, or that of its upper tail where it is larger."""
        return {name: max(spread, tail_spread(self.raw_held[name])) for name, spread in self.spread.items()}

    def judged(self, weights: Mapping[str, float], *, raw: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return evidence and q-value of each audited image by the weighted sum of some parts, both (n,).

        Args:
            weights: of some parts.
            raw: of excess in the score's own unit.
        """
        of_held, of_audited = (self.raw_held, self.raw_audited) if raw else (self.held, self.audited)
        held = np.sum([weight * of_held[name] for name, weight in weights.items()], 0)
        audited = np.sum([weight * of_audited[name] for name, weight in weights.items()], 0)
        spread = spread_of(held)
        p_value = held_out_p_values(Excess(audited / spread, held / spread, self.fold), fit_tail(held / spread)).used
        return audited.mean(0) / spread, q_values(p_value, self.content)
