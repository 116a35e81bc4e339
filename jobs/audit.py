"""Entry point for `ray job submit -- python jobs/audit.py MODEL DATA --output OUT ...`: the command line's `audit`."""

import sys

from volgrowth.cli import main

if __name__ == "__main__":
    main(["audit", *sys.argv[1:]])
