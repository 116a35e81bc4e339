"""The theory's experiments: `python jobs/theory.py --output DIR [--quick] [--only NAME ...]`.

Tables (Parquet), figures (PNG, SVG), and the page `theory.md` with its pictures under `theory/`, in DIR.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script's own folder stands there, not the repository

from jobs.theory.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
