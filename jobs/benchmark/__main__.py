"""The command line of `jobs/benchmark.py`."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jobs.benchmark.detection.audited_presets import choose_scores
from jobs.benchmark.detection.bench_tables import bench
from jobs.benchmark.detection.suite import SUITE, choose_cases
from jobs.benchmark.figures import draw_figures
from jobs.benchmark.image_sets import EMOJI_FONT, HANZI_FONT, write_image_sets
from jobs.experiments import Outcome, publish_outcome
from jobs.pages import markdown_table, page_in
from volgrowth.errors import UsageError, VolgrowthError
from volgrowth.plain import plain, print_plain


def _detection(given: argparse.Namespace) -> Outcome:
    """Judge presets and single scores by what small models reproduce of the images that they were trained on."""
    scores, cases = choose_scores(given.only, given.score), choose_cases(given.data, given.cases)
    return bench(cases, given.seeds, given.data, given.output, scores, cached_only=given.cached)


def _speed(given: argparse.Namespace) -> Outcome:
    """Time presets on networks of published configurations, beside the device's peak and the published algorithm."""
    from jobs.benchmark.cost.speed import NETWORKS, measure_speed

    return measure_speed(NETWORKS[:1], rounds=1) if given.quick else measure_speed()


def _scale(given: argparse.Namespace) -> Outcome:
    """Audit from a thousand rows up, by one worker or several: time, memory, CPU time a row, resuming."""
    from jobs.benchmark.cost.engine_load import SIZES, scale

    sizes = [rows for rows in SIZES if rows <= given.rows] or [given.rows]
    return scale(given.output, sizes, [2**n for n in range((os.cpu_count() or 1).bit_length())])


def _soak(given: argparse.Namespace) -> Outcome:
    """Audit very many rows: the driver's memory, and CPU time beside that of a plain loop."""
    from jobs.benchmark.cost.engine_load import soak

    return soak(given.output, given.rows)


def _kills(given: argparse.Namespace) -> Outcome:
    """Audit very many rows while drivers and workers are killed: the drivers' memory, and whether each row is there."""
    from jobs.benchmark.cost.kills import soak_with_kills

    return soak_with_kills(given.output, given.rows, given.every, scores_only=given.scores_only)


def _analysis(given: argparse.Namespace) -> Outcome:
    """Make up scores and run all that follows scoring, up to the report: time and memory by number of rows."""
    from jobs.benchmark.cost.analysis_load import analysis_load

    return analysis_load(given.output, given.rows, given.before)


def _driver(given: argparse.Namespace) -> Outcome:
    """Hand out very many shards that cost nothing: the driver's memory."""
    from jobs.benchmark.cost.driver_memory import measure_driver

    return measure_driver(given.output, given.shards)


def _duplicates(given: argparse.Namespace) -> Outcome:
    """Group near duplicates among many planted hashes: time, memory, and how many of the planted pairs are found."""
    from jobs.benchmark.near_duplicates import FAMILY, RADIUS, measure_apart

    found = [measure_apart(rows) for rows in given.rows]
    said = [
        f"Of {row['rows']:,} rows, {row['copies found, %']:.2f}% of the pairs of an image and its copies are found; "
        f"{row['false pairs']} other pairs are taken for duplicates."
        for row in found
    ]
    return Outcome(said, {"table": found}, {"bits that copies differ in": RADIUS, "rows in a family": FAMILY})


def _embeddings(given: argparse.Namespace) -> Outcome:
    """Join planted near duplicates by embeddings: time, memory, and how many of the planted pairs are found."""
    from jobs.benchmark.near_embeddings import KINDS_OF_EMBEDDINGS, LEAST, MOST, SIMILARITY, measure_embeddings_apart

    found = [measure_embeddings_apart(rows, given.width, kind) for rows in given.rows for kind in KINDS_OF_EMBEDDINGS]
    said = [
        f"Of {row['embeddings']:,} embeddings, {row['kind']}, {row['copies found, %']:.2f}% of the copies are joined "
        f"with their image, in {row['CPU, s']:,.0f} seconds of CPU time."
        for row in found
    ]
    return Outcome(said, {"table": found}, {"similarity": SIMILARITY, "cosine of copies": f"{LEAST} to {MOST}"})


def _evidence(given: argparse.Namespace) -> Outcome:
    """Compare what preset standard measures, and a further loss, alone and added up, on cases of any page."""
    from jobs.benchmark.detection.evidence_parts import compare_parts
    from jobs.benchmark.truth.world import WORLD

    cases = choose_cases(given.data, given.cases, (*SUITE, *WORLD) if given.cases else SUITE)
    return compare_parts(cases, given.seeds, given.data, given.output / "models", cached_only=given.cached)


def _forms(given: argparse.Namespace) -> Outcome:
    """Judge planted images whose copies differ as an audit does, every form of an image a row."""
    from jobs.benchmark.detection.all_forms import compare_forms

    cases = choose_cases(given.data, given.cases)
    rows = compare_forms(cases, given.seeds, given.data, given.output / "models", cached_only=given.cached)
    return Outcome([], {"table": rows})


def _copies(given: argparse.Namespace) -> Outcome:
    """Alter copies as the world does, and say which of them the hash groups with their image; needs no model."""
    from jobs.benchmark.truth.grouping import measure_groups

    return measure_groups(given.data)


def _learned(given: argparse.Namespace) -> Outcome:
    """Train a small embedding of each image set, and say which altered copies it finds beside the hash."""
    from jobs.benchmark.truth.learned_embedding import measure_learned

    return measure_learned(given.data)


def _hits(given: argparse.Namespace) -> Outcome:
    """Say which altered copies a hit rule finds by distances in pixels, perceptual ones and SSIM; needs no model."""
    from jobs.benchmark.truth.hit_rules import measure_hit_rules

    return measure_hit_rules(given.data)


def _truth(given: argparse.Namespace) -> Outcome:
    """Judge presets and single scores in colour, on natural near duplicates, and where copies were altered."""
    from jobs.benchmark.truth.world import WORLD, measure_world

    scores, cases = choose_scores(given.only, given.score), choose_cases(given.data, given.cases, WORLD)
    return measure_world(cases, given.seeds, given.data, given.output, scores, cached_only=given.cached)


def _rates(given: argparse.Namespace) -> Outcome:
    """Measure rates of generation on the bench's models, beside how often samples hit the same images."""
    from jobs.benchmark.truth.rates_checked import check_rates
    from jobs.benchmark.truth.world import WORLD

    cases = choose_cases(given.data, given.cases, (*SUITE, *WORLD))
    models, cached = given.output / "models", given.cached
    return check_rates(cases, given.seeds, given.data, models, given.images, cached_only=cached)


def _conditions(given: argparse.Namespace) -> Outcome:
    """Judge scores under classes and captions: which pairs of image and condition come out, and what finds them."""
    from jobs.benchmark.truth.conditions import CONDITIONED, compare_conditions

    known = {setup.name: setup for setup in CONDITIONED}
    if unknown := [name for name in given.cases or () if name not in known]:
        raise UsageError(f"case {unknown[0]!r} is not known: expected one of {', '.join(known)}")
    chosen = [known[name] for name in given.cases or known]
    return compare_conditions(chosen, given.seeds, given.data, given.output / "models", cached_only=given.cached)


def _goal(given: argparse.Namespace) -> Outcome:
    """Say on which of all models that are trained the evidence of the presets finds what samples reproduce."""
    from jobs.benchmark.truth.conditions import CONDITIONED
    from jobs.benchmark.truth.goal import compare_with_goal
    from jobs.benchmark.truth.world import WORLD

    setups = [setup for setup in (*SUITE, *WORLD) if setup.file is None or (given.data / setup.file).exists()]
    pairs = [setup for setup in CONDITIONED if (given.data / setup.file).exists()]
    if given.cases:
        known = [*(setup.name for setup in setups), *(setup.name for setup in pairs)]
        if unknown := [name for name in given.cases if name not in known]:
            raise UsageError(f"case {unknown[0]!r} is not known: expected one of {', '.join(known)}")
        setups = [setup for setup in setups if setup.name in given.cases]
        pairs = [setup for setup in pairs if setup.name in given.cases]
    return compare_with_goal(setups, pairs, given.seeds, given.data, given.output / "models")


def _membership(given: argparse.Namespace) -> Outcome:
    """Say what membership alone does to evidence and to the promised rate, by degree of overfitting."""
    from jobs.benchmark.truth.membership import ONCE, compare_membership

    cases = choose_cases(given.data, given.cases, ONCE)
    return compare_membership(cases, given.seeds, given.data, given.output / "models", cached_only=given.cached)


def _curation(given: argparse.Namespace) -> Outcome:
    """Train again on what each action of `curate` makes of a case, and say what samples still copy."""
    from jobs.benchmark.truth.curation import compare_actions
    from jobs.benchmark.truth.world import WORLD

    cases = choose_cases(given.data, given.cases, (*SUITE, *WORLD))
    return compare_actions(cases, given.seeds, given.data, given.output / "models", cached_only=given.cached)


def _levels(given: argparse.Namespace) -> Outcome:
    """Judge noise norm and loss at eight noise levels, and what latents say beside pixels of the same images."""
    from jobs.benchmark.truth.levels import compare_levels
    from jobs.benchmark.truth.world import WORLD

    cases = choose_cases(given.data, given.cases, (*SUITE, *WORLD))
    return compare_levels(cases, given.seeds, given.data, given.output / "models", cached_only=given.cached)


def _promise(given: argparse.Namespace) -> Outcome:
    """Simulate audits over tails of every kind: the false discoveries and the power behind a promised rate."""
    from jobs.benchmark.promise import simulate_promises

    found = list(simulate_promises(given.draws))
    rates = [next(value for name, value in row.items() if name.startswith("FDR realised")) for row in found]
    held = sum(int(row["bounds held"].split()[0]) for row in found)
    said = [
        f"Of a promised 10% at most {max(rates):.1%} are realised in any line, {np.mean(rates):.1%} in the mean.",
        f"Bounds on false flags held at every cut at once in {held} of {len(found) * given.draws} audits; 90% were "
        f"promised.",
    ]
    return Outcome(said, {"table": found}, {"audits for each line": given.draws})


def _faults(given: argparse.Namespace) -> Outcome:
    """Do to a small audit what machines, disks and people do, and count rows lost, doubled or changed."""
    from jobs.benchmark.faults.all_faults import inject_faults

    return inject_faults(given.output, given.only, given.quick)


def _gpu(given: argparse.Namespace) -> None:
    """Check on a GPU what only a GPU can tell, one JSON line a result, in eight minutes: see docs/performance.md."""
    from jobs.benchmark.device.check import check_device

    print(f"results: {check_device(given.output, given.only, given.quick)}")


def _launches(given: argparse.Namespace) -> Outcome:
    """Count what a micro-batch costs the host: dispatched operations and Python's time, without any device."""
    from jobs.benchmark.device.host_cost import measure_host_cost

    return measure_host_cost(given.quick)


def _rows(given: argparse.Namespace) -> Outcome:
    """Measure what a row costs beside its network, and what its size as PNG explains on models of `detection`."""
    from jobs.benchmark.cost.row_costs import measure_row_costs

    return measure_row_costs(choose_cases(given.data, given.cases), given.seeds, given.data, given.output / "models")


def _images(given: argparse.Namespace) -> None:
    """Make the bench's image sets mnist12, emoji32, hanzi12, photos32 (.npz) from npm, Debian and Python packages."""
    write_image_sets(given.output, given.font, given.hanzi_font)


def _figures(given: argparse.Namespace) -> None:
    """Draw the figures of the pages in the output folder again, of the tables that stand there."""
    print_plain("\n".join(f"figure: {path}" for path in draw_figures(given.output)))


# the command, and the page of docs/ that it fills
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], Outcome | None], str]] = {
    "detection": (_detection, "detection"),
    "speed": (_speed, "performance"),
    "scale": (_scale, "performance"),
    "soak": (_soak, "engine"),
    "kills": (_kills, "engine"),
    "analysis": (_analysis, "engine"),
    "driver": (_driver, "engine"),
    "duplicates": (_duplicates, "engine"),
    "embeddings": (_embeddings, "engine"),
    "evidence": (_evidence, "detection"),
    "forms": (_forms, "detection"),
    "copies": (_copies, "truth"),
    "learned": (_learned, "truth"),
    "hits": (_hits, "truth"),
    "truth": (_truth, "truth"),
    "rates": (_rates, "truth"),
    "conditions": (_conditions, "truth"),
    "levels": (_levels, "truth"),
    "membership": (_membership, "truth"),
    "curation": (_curation, "truth"),
    "goal": (_goal, "truth"),
    "promise": (_promise, "detection"),
    "faults": (_faults, "engine"),
    "gpu": (_gpu, ""),
    "launches": (_launches, "performance"),
    "rows": (_rows, "performance"),
    "images": (_images, ""),
    "figures": (_figures, ""),
}


# the commands that work on trained models
OF_MODELS = (
    *("detection", "evidence", "forms", "rows"),
    *("truth", "rates", "conditions", "levels", "membership", "curation"),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark", description="Measurements of detection, speed, scale and faults."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    added = {}
    for name, (run, page) in COMMANDS.items():
        added[name] = commands.add_parser(name, description=run.__doc__, help=run.__doc__)
        where = f"folder for numbers and page; --output docs updates docs/{page}.md" if page else "folder"
        added[name].add_argument("--output", type=Path, required=True, help=where)
    for name, rows, said in (
        ("soak", 1_000_000, "images"),
        ("kills", 10_000_000, "images"),
        ("scale", 100_000, "images of the largest audit"),
    ):
        added[name].add_argument("--rows", type=int, default=rows, help=f"{said}; {rows:,} by default")
    added["kills"].add_argument("--scores-only", action="store_true", help="end when every row is scored")
    added["kills"].add_argument("--every", type=int, default=1_000_000, help="images between two kills of a driver")
    added["driver"].add_argument("--shards", type=int, default=20_000, help="number of shards; 20,000 by default")
    added["duplicates"].add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="numbers of hashes")
    few = [100_000, 1_000_000]
    added["embeddings"].add_argument("--rows", type=int, nargs="+", default=few, help="numbers of embeddings")
    added["embeddings"].add_argument("--width", type=int, default=512, help="numbers of each; 512 by default")
    sizes = [100_000, 300_000, 1_000_000]
    added["analysis"].add_argument("--rows", type=int, nargs="+", default=sizes, help="numbers of rows, rising")
    added["analysis"].add_argument("--before", type=Path, help="checkout of an older version, measured beside this one")
    added["promise"].add_argument("--draws", type=int, default=20, help="simulated audits for each line; 20 by default")
    added["speed"].add_argument("--quick", action="store_true", help="only the smallest network, one round")
    added["gpu"].add_argument("--quick", action="store_true", help="the smallest network, few images, GPU or not")
    added["gpu"].add_argument("--only", nargs="+", help="names of steps, such as waits or audits; all by default")
    added["launches"].add_argument("--quick", action="store_true", help="only the smallest network")
    added["faults"].add_argument("--quick", action="store_true", help="few tries of the faults that need no Ray")
    added["faults"].add_argument("--only", nargs="+", help="names of faults, such as bits or sigterm; all by default")
    added["images"].add_argument("--font", type=Path, default=EMOJI_FONT, help="the file NotoColorEmoji.ttf")
    added["images"].add_argument(
        "--hanzi-font", type=Path, default=HANZI_FONT, help="the file DroidSansFallbackFull.ttf"
    )
    _add_bench_options(added)
    return parser


def _add_bench_options(added: dict[str, argparse.ArgumentParser]) -> None:
    """Add the options of the commands that work on the image sets, and on the models, of the detection bench."""
    for name in (*OF_MODELS, "copies", "learned", "hits", "goal"):
        added[name].add_argument(
            "--data", type=Path, default=Path("data"), help="folder of the image sets that `images` makes"
        )
    for name in (*OF_MODELS, "goal"):
        added[name].add_argument("--cases", nargs="+", help="cases of the bench; by default all whose images are there")
    for name in OF_MODELS:
        added[name].add_argument(
            "--cached",
            action="store_true",
            help="train and measure nothing: only what earlier runs into the same folder left; the rest is named",
        )
    for name in (*OF_MODELS, "goal"):
        added[name].add_argument(
            "--seeds", type=_seed, nargs="+", default=[1, 2, 3], help="seeds of each case; 1 2 3 by default"
        )
    for name in ("truth", "rates", "conditions", "levels", "curation", "goal"):
        added[name].add_argument(
            "--add", action="store_true", help="keep what the page says of other cases and seeds, from earlier runs"
        )
    added["rates"].add_argument("--images", type=int, default=12, help="images a model; 12 by default")
    for judging in (added["detection"], added["truth"]):
        judging.add_argument("--only", nargs="+", help="presets and built-in scores; all by default")
        judging.add_argument("--score", nargs="+", default=[], help="scores of your own, as module:function")


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a seed is {text}: expected 1 or more")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `jobs/benchmark.py`. Returns the exit code: 0 done, 2 could not start."""
    given = _parser().parse_args(arguments)
    run, page = COMMANDS[given.command]
    began = time.perf_counter()
    try:
        outcome = run(given)
    except VolgrowthError as error:
        print_plain(f"error: {plain(str(error))}", error=True)
        return 2
    if outcome:
        seconds, add = time.perf_counter() - began, getattr(given, "add", False)
        publish_outcome(page, given.command, outcome, given.output, seconds, add=add)
        print_plain("\n\n".join(markdown_table(rows) for rows in outcome.tables.values()))
        print_plain(f"page: {page_in(given.output, page)}")
        draw_figures(given.output, [given.command])
    return 0


if __name__ == "__main__":
    sys.exit(main())
