"""Attribution: `python jobs/influence.py OUT [--rows 17 ...] [--images sample.png ...]` writes OUT/influence.parquet.

Every image of the data set is ranked by how far a training step on it lowers the model's loss at a query, which is a
flagged image of the finished audit OUT, a named row of it, or an image file such as a sample.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script's own folder stands there, not the repository

from jobs.influence.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
