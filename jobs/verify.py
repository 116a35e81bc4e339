"""Entry point for `ray job submit -- python jobs/verify.py OUT --samples N`: the command line's `verify`."""

import sys

from volgrowth.cli import main

if __name__ == "__main__":
    main(["verify", *sys.argv[1:]])
