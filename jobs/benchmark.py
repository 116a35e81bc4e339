"""Measurements: `python jobs/benchmark.py detection|speed|scale|soak|duplicates --output DIR`.

`detection` compares memorization scores, raw and calibrated, with what models trained on the spot reproduce when
sampled, without Ray: its cases are small. Models, samples and scores are cached under DIR, so a rerun is quick. `speed`
times presets on networks of published configurations, on the GPU if there is one; `scale` times audits of growing
size. `soak` audits very many small images with a model that costs nothing, and watches the driver's memory and the
CPU time. `duplicates` groups very many hashes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script's own folder stands there, not the repository

from jobs.benchmark.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
