"""The experiments of Hasegawa & Yasuda (arXiv 2503.19429) on data at hand, and the checks that they leave open.

Without a data file: scikit-learn's digits, as they are for the planted case, enlarged to 12x12 for the overfit
experiment. Each experiment is a section of its own under the output folder, written as soon as it is done, and the
page shows those that are there: a run that was stopped goes on with `--only` the rest. Models are kept.
"""

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from jobs.benchmark.detection.suite import DIGITS, SUITE, Setup
from jobs.reproduce_paper.ablation import ablation
from jobs.reproduce_paper.overfit import degrees, overfit
from jobs.reproduce_paper.paper_page import html, markdown
from jobs.reproduce_paper.planted import memorized, scores
from jobs.reproduce_paper.stochastic import curation, stochastic
from jobs.reproduce_paper.trajectory import trajectory
from jobs.sections import FULL, QUICK, Scale, Section, Workshop, read, timed, write
from volgrowth.errors import UsageError, VolgrowthError
from volgrowth.version import VERSION

EXPERIMENTS: dict[str, Callable[[Workshop], Section]] = {
    "overfit": overfit,
    "degrees": degrees,
    "memorized": memorized,
    "ablation": ablation,
    "trajectory": trajectory,
    "scores": scores,
    "stochastic": stochastic,
    "curation": curation,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """What `jobs/reproduce_paper.py` does: 0 done, 2 could not start."""
    parser = argparse.ArgumentParser(prog="reproduce_paper", description="The experiments of arXiv 2503.19429.")
    parser.add_argument("--output", type=Path, required=True, help="folder for tables, figures and the page")
    parser.add_argument("--data", type=Path, help="an .npz with `x`, uint8 (n, H, W) or (n, H, W, 3); default digits")
    parser.add_argument("--quick", action="store_true", help="fewer images, axes and steps")
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--models", type=Path, help="where trained models are kept; default OUTPUT/models")
    given = parser.parse_args(arguments)
    command = shlex.join(["python", "jobs/reproduce_paper.py", *(sys.argv[1:] if arguments is None else arguments)])
    scale = QUICK if given.quick else FULL
    try:
        reproduce(given.output, given.data, scale, given.only or list(EXPERIMENTS), given.models, command)
    except VolgrowthError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def reproduce(
    output: Path,
    data: Path | None = None,
    scale: Scale = FULL,
    only: Sequence[str] = tuple(EXPERIMENTS),
    models: Path | None = None,
    command: str = "",
    setup: Setup | None = None,
) -> Path:
    """Run experiments and write the page of all that the folder holds. Returns the page.

    Raises:
        UsageError: the data file is not there, or does not hold images.
    """
    shop = Workshop(
        scale=scale,
        setup=setup or planted_setup(data),
        data=data.parent if data else Path(),
        images=data,
        models=models or output / "models",
        say=lambda line: print(f"{datetime.now(UTC):%H:%M:%S} {line}", flush=True),
    )
    for name in only:
        shop.say(f"{name}: {EXPERIMENTS[name].__doc__.splitlines()[0]}")  # type: ignore[union-attr]
        section, seconds = timed(lambda name=name: EXPERIMENTS[name](shop))  # type: ignore[misc]
        write(section, output, seconds, provenance(command))
        sections = read(output, list(EXPERIMENTS))
        (output / "paper.md").write_text(markdown(sections))
        (output / "paper.html").write_text(html(sections))
        shop.say(f"{name} took {seconds:.0f} s")
    shop.say(f"page: {output / 'paper.html'}")
    return output / "paper.html"


def planted_setup(data: Path | None) -> Setup:
    """The bench's case of this file, or one like it.

    Raises:
        UsageError: no such file, or no images in it.
    """
    if data is None:
        return DIGITS
    if not data.exists():
        raise UsageError(f"data {data} does not exist: expected an .npz with an array x of uint8 images")
    known = [setup for setup in SUITE if setup.file == data.name and setup.variation == "exact"]
    if known:
        return known[0]
    try:
        with np.load(data) as archive:
            images = archive["x"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"data {data} cannot be read ({error}): expected an .npz with an array x of images") from None
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) < 500:
        raise UsageError(
            f"data {data} holds {images.dtype} of shape {images.shape}: expected at least 500 uint8 images, "
            f"(n, H, W) or (n, H, W, 3)"
        )
    return Setup(f"{data.stem}-exact", data.name, min(1500, len(images) // 2), DIGITS.planting, DIGITS.recipe)


def provenance(command: str) -> dict[str, str]:
    """What made a section."""
    return {
        "command": command,
        "date": f"{datetime.now(UTC):%d %B %Y}",
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s) of {os.cpu_count()} cores",
        "versions": f"volgrowth {VERSION}, torch {torch.__version__}, diffusers {version('diffusers')}, "
        f"numpy {np.__version__}, Python {platform.python_version()}",
    }


if __name__ == "__main__":
    sys.exit(main())
