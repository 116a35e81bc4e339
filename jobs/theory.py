"""The theory's experiments: `python jobs/theory.py --output DIR [--quick] [--only NAME ...]`.

They fill the page DIR/theory.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script's own folder stands there, not the repository

from jobs.theory.__main__ import run_theory

if __name__ == "__main__":
    sys.exit(run_theory())
