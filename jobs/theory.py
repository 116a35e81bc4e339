"""The theory's experiments: `python jobs/theory.py --output DIR [--quick] [--only NAME ...]`.

Tables (Parquet), figures (PNG, SVG), and the page `theory.md` with its pictures under `theory/`, in DIR.
"""

import sys

from volgrowth.lab.theory import main

if __name__ == "__main__":
    sys.exit(main())
