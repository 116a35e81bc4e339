"""Quality of a score's ranking: area under the ROC curve, and true positives at few false ones."""

import numpy as np


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Return the probability that a positive has the higher score, NaN if a class is empty; both arguments (n,)."""
    if positive.all() or not positive.any():
        return float("nan")
    from sklearn.metrics import roc_auc_score  # a second to import

    return float(roc_auc_score(positive, score))


def tpr_at_fpr(score: np.ndarray, positive: np.ndarray, fpr: float = 0.01) -> float:
    """Return the share of positives above the threshold that at most a share `fpr` of negatives pass.

    NaN if a class is empty; `score` and `positive` (n,).
    """
    if positive.all() or not positive.any():
        return float("nan")
    from sklearn.metrics import roc_curve  # a second to import

    false, true, _ = roc_curve(positive, score, drop_intermediate=False)
    return float(true[false <= fpr].max())


class Separation:
    """How well a score tells few positives from very many negatives, which are seen some at a time.

    Args:
        positives: scores of all positives, (p,).
    """

    def __init__(self, positives: np.ndarray):
        self._positives, self._negatives = np.sort(positives), 0
        self._below = self._up_to = np.zeros(len(positives), np.int64)

    def see(self, negatives: np.ndarray) -> None:
        """Take in the scores of some negatives, (n,)."""
        others = np.sort(negatives)
        self._negatives += len(others)
        self._below = self._below + np.searchsorted(others, self._positives, "left")
        self._up_to = self._up_to + np.searchsorted(others, self._positives, "right")

    def auroc(self) -> float:
        """Return what the function `auroc` does; of a tie half counts."""
        if not self._negatives or not len(self._positives):
            return float("nan")
        return float((self._below + self._up_to).sum() / 2 / (self._negatives * len(self._positives)))

    def tpr_at_fpr(self, fpr: float = 0.01) -> float:
        """Return what the function `tpr_at_fpr` does."""
        if not self._negatives or not len(self._positives):
            return float("nan")
        passing = (self._negatives - self._below) / self._negatives <= fpr  # with each positive as the threshold
        reached = len(self._positives) - np.searchsorted(self._positives, self._positives[passing], "left")
        return float(reached.max(initial=0) / len(self._positives))
