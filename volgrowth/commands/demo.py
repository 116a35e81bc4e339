"""`volgrowth demo`: train a model that memorizes some real digits, find them by an audit, and prove it by samples.

The data set has scikit-learn's 8x8 digits, twenty of them in many copies, and plain images (flat, gradient, faint).
Plain images are easy for every model, and therefore look memorized to the raw score. Other digits and plain images are
held out.
"""

from pathlib import Path

from volgrowth.audit.output.result import Audit
from volgrowth.commands.audit import run_audit
from volgrowth.commands.verify import verify_audit
from volgrowth.config import AuditConfig
from volgrowth.demo.cases import digits_case, write_image_parquet
from volgrowth.demo.training import train_model
from volgrowth.plain import print_plain
from volgrowth.report.formats import score

SAMPLES = 2500


def run_demo(output: Path) -> Audit:
    """Run the demo in the folder `output`, and print its findings."""
    output.mkdir(parents=True, exist_ok=True)
    case = digits_case()
    write_image_parquet(output / "train.parquet", case.train, case.row_names)
    write_image_parquet(output / "holdout.parquet", case.holdout, case.holdout_names.tolist())
    if (output / "model" / "model_index.json").exists():
        _say(f"using the model of an earlier run; delete {output} to start over")
    else:
        planted = int((case.copies > 1).sum())
        _say(f"training a small diffusion model on {len(case.train)} images, {planted} of them in many copies")
        train_model(case.train, output / "model", seed=1)
    config = AuditConfig.build(
        model=str(output / "model"),
        data=str(output / "train.parquet"),
        holdout=str(output / "holdout.parquet"),
        output=str(output / "audit"),
        id_column="name",
        shard_size=256,
    )
    _say("auditing")
    run_audit(config)
    _say(f"drawing {SAMPLES} samples to see what the model really reproduces")
    audit = verify_audit(config.output, SAMPLES)
    found = audit.summary["verification"]
    _say(
        f"the model reproduces {found['reproduced_images']} images; how well they are found:\n"
        f"                      AUROC   TPR at 1% FPR\n"
        f"  growth              {score(found['raw']['auroc'])}   {score(found['raw']['tpr_at_1_fpr'])}\n"
        f"  growth, calibrated  {score(found['calibrated']['auroc'])}   {score(found['calibrated']['tpr_at_1_fpr'])}\n"
        f"  evidence            {score(found['evidence']['auroc'])}   {score(found['evidence']['tpr_at_1_fpr'])}\n"
        f"{found['flagged']} images were flagged at a false-discovery rate of "
        f"{audit.summary['detection']['fdr']:.0%}; {found['flagged_reproduced']} of them are reproduced\n"
        f"report: {audit.store.path('report.html')}"
    )
    return audit


def _say(line: str) -> None:
    print_plain(line)
