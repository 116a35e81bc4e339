"""Attribution: `python jobs/influence.py OUT [--checkpoints A B ...] [--rows 17 ...] [--images sample.png ...]`.

For flagged images of the finished audit OUT, for rows of it, or for images such as samples: every image of the data
set ranked by how far a training step on it lowers the model's loss there. Writes OUT/influence.parquet.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script's own folder stands there, not the repository

from jobs.influence.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
