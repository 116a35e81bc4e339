"""Measurements of detection and cost: `python jobs/benchmark.py COMMAND --output DIR`; `--help` lists the commands."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script's own folder stands there, not the repository

from jobs.benchmark.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
