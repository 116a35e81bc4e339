"""The paper's experiments: `python jobs/reproduce_paper.py --output DIR [--quick] [--only NAME ...]`.

They fill the page DIR/paper.md. Without `--data FILE.npz` they use scikit-learn's digits.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script's own folder stands there, not the repository

from jobs.reproduce_paper.__main__ import reproduce_paper

if __name__ == "__main__":
    sys.exit(reproduce_paper())
