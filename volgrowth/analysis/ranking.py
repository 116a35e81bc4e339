"""How well a score finds what it should: area under the ROC curve, and true positives at few false ones."""

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive has the higher score; NaN when a class is empty."""
    if positive.all() or not positive.any():
        return float("nan")
    return float(roc_auc_score(positive, score))


def tpr_at_fpr(score: np.ndarray, positive: np.ndarray, fpr: float = 0.01) -> float:
    """Share of positives above the threshold that at most a share `fpr` of negatives pass; NaN as for `auroc`."""
    if positive.all() or not positive.any():
        return float("nan")
    false, true, _ = roc_curve(positive, score, drop_intermediate=False)
    return float(true[false <= fpr].max())
