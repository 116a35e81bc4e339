"""The paper's experiments: `python jobs/reproduce_paper.py --output DIR [--data FILE.npz] [--quick] [--only NAME ...]`.

Tables (Parquet), figures (PNG, SVG), `paper.html` and `paper.md` under DIR. Without FILE: scikit-learn's digits.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script's own folder stands there, not the repository

from jobs.reproduce_paper.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
