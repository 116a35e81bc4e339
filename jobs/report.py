"""Entry point for `ray job submit -- python jobs/report.py OUT`: the command line's `report`."""

import sys

from volgrowth.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
