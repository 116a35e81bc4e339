"""How complex an image is, as regressors for what growth such an image shows anyway.

Plain images look memorized: few directions around a flat image are plausible, so volume grows there in every model.
FINDINGS section 2 measures how much of raw growth these columns explain.
"""

import numpy as np
import pyarrow as pa

REGRESSORS = ("log_png_bytes", "variance", "log_variance", "total_variation", "mean", "edge_density")

# of variance, below which two images are equally flat: half a grey level
FLAT = (0.5 / 127.5) ** 2


def regressors(scores: pa.Table) -> np.ndarray:
    """(rows, len(REGRESSORS)) float64 from the columns of `records.SCORES`; NaN where a row has no image."""
    column = {
        name: scores.column(name).cast(pa.float64()).to_numpy()
        for name in ("png_bytes", "variance", "total_variation", "mean", "edge_density")
    }
    return np.stack(
        [
            np.log(column["png_bytes"]),
            column["variance"],
            np.log(column["variance"] + FLAT),
            column["total_variation"],
            column["mean"],
            column["edge_density"],
        ],
        axis=1,
    )
