"""The paper's experiments: `python jobs/reproduce_paper.py --output DIR [--data FILE.npz] [--quick] [--only NAME ...]`.

Tables (Parquet), figures (PNG, SVG), `paper.html` and `paper.md` under DIR. Without FILE: scikit-learn's digits.
"""

import sys

from volgrowth.lab.paper import main

if __name__ == "__main__":
    sys.exit(main())
