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
