"""The origin of a report's numbers: the model, the data, the settings and the run."""

from typing import Any

from volgrowth.report.formats import duration, moment, number, percent, plural, score
from volgrowth.report.words import Summary
from volgrowth.sources import Opened

Pairs = list[tuple[str, Any]]


def provenance_groups(summary: Summary) -> list[tuple[str, Pairs]]:
    """Return the page's section on provenance: titles of groups, and the names and values in each."""
    measure = summary["measure"]
    groups = [("Model", _model(summary["model"])), ("Data", _data(summary["data"]))]
    if summary["holdout"]:
        groups.append(("Held out", _data(summary["holdout"])))
    settings = [("Preset", measure["preset"]), ("Evaluations an image", measure["evaluations"])]
    settings += [(_words(key), _listed(v)) for key, v in measure.items() if key not in ("preset", "evaluations")]
    groups.append(("Measurement", settings))
    if summary.get("model_check"):
        groups.append(("Check of the model", _checked(summary["model_check"])))
    groups.append(("Calibration", _calibration(summary["calibration"])))
    if summary.get("cascade"):
        groups.append(("Cascade", _cascade(summary["cascade"])))
    if summary["detection"]:
        groups.append(("Detection", _detection(summary["detection"])))
    if summary.get("verification"):
        truth = summary["verification"]
        pairs = [("Samples", f"{number(truth['samples'])}, {truth['sampler']}"), ("Reproduced means", truth["rule"])]
        groups.append(("Verification", pairs))
    groups.append(("Run", _run(summary)))
    groups.append(("Versions", list({"volgrowth": summary["volgrowth"], **summary["versions"]}.items())))
    return groups


def _model(model: Summary) -> Pairs:
    latent = model.get("latent_shape")
    return [
        ("Name", model["name"]),
        ("Kind", model["kind"]),
        ("Image shape", " × ".join(map(str, model["image_shape"]))),
        *([("Measured in latents of", " × ".join(map(str, latent)))] if latent else []),
        *([("Conditioned on", model["condition"])] if model.get("condition") else []),
        ("Parameters", number(model["parameters"])),
        ("Dtype", model["dtype"]),
        ("Hash", model["hash"]),
        *([("Settings that nothing knows", ", ".join(unknown))] if (unknown := model.get("unknown_settings")) else []),
        *(("Note", note) for note in model.get("notes", ())),
    ]


def _checked(check: Summary) -> Pairs:
    """Say what the regression of the true noise on answer and input found, a line for each noise level."""
    meaning = {"right": "the answer is the expected noise", "wrong": "failed, and trusted", "untested": "not done"}
    return [
        ("Result", f"{meaning[check['verdict']]} ({plural(check['images'], 'image')})"),
        *([("Why", check["cause"])] if check["cause"] else []),
        *(
            (
                f"True noise at level {score(fit['noise_level'])}",
                f"{fit['of_answer']:.2f} × answer {fit['of_input']:+.2f} × input (1 and 0 if right; "
                f"{fit['total']:.2f} × answer alone), loss {score(fit['loss'])}",
            )
            for fit in check["levels"]
        ),
    ]


def _data(data: Summary) -> Pairs:
    return [
        ("Name", data["name"]),
        ("Split", data["split"]),
        ("Rows", number(data["rows"])),
        *opened_pairs(data),
        ("Fingerprint", data["fingerprint"]),
    ]


def opened_pairs(data: Summary) -> Pairs:
    """Return what was opened of a data set and what was left aside; nothing for older audits, which did not note it."""
    opened = data.get("opened")
    if not opened:
        return []
    found = Opened.from_json(opened)
    return [("Opened", found.said), *(("Left aside", str(each)) for each in found.left_aside or ("nothing",))]


def _calibration(calibration: Summary | None) -> Pairs:
    if not calibration:
        return [("Method", "none: too few scored images that are not of one colour")]
    return [
        ("Method", calibration["method"]),
        ("Features", _listed(calibration["features"])),
        ("Fitted on", plural(calibration["rows"], "row")),
        ("Explained variance", percent(calibration["r2"])),
        ("Residual spread", score(calibration["residual_spread"])),
        ("Outside its range", plural(calibration["outside_range"], "row")),
        *_one_colour(calibration.get("one_colour")),
    ]


def _one_colour(counts: Summary | None) -> Pairs:
    if not counts:
        return []  # an older version judged them
    return [("Of one colour, never flagged", plural(counts["rows"], "row"))]


def _detection(detection: Summary) -> Pairs:
    compared = []
    if detection["null"] == "held-out":
        compared = [("Compared with", plural(detection["calibration_rows"], "held-out row"))]
    return [
        ("Method", detection["method"]),
        ("False discovery rate", percent(detection["fdr"])),
        *compared,
        ("Flagged under any dependence", f"{number(detection['memorized_any_dependence'])} (Benjamini–Yekutieli)"),
    ]


def _cascade(cascade: Summary) -> Pairs:
    recall = cascade["recall_at_least"]
    return [
        ("Screen", f"lets {percent(cascade['screen_share'])} of the held-out images through"),
        ("Let through", f"{number(cascade['kept'])} of {plural(cascade['images'], 'distinct image')}"),
        ("Sample of the others", plural(cascade["sample"], "image")),
        ("Flagged in the sample", number(cascade["missed_in_sample"])),
        ("Flags lost at most", number(cascade["flags_lost_at_most"])),
        ("Share found at least", None if recall is None else percent(recall)),
        ("Evaluations saved", number(cascade["evaluations_saved"])),
    ]


def _run(summary: Summary) -> Pairs:
    run = summary["run"]
    return [
        ("Config digest", summary["config_digest"]),
        ("Finished", moment(summary["created"])),
        ("Took", duration(run["seconds"])),
        ("Images a second", score(run["images_per_second"])),
        ("Workers", f"{number(run['workers'])} × {' and '.join(run.get('device_names', ())) or run['device']}"),
        ("Device-hours", score(run["device_hours"])),
        (
            "Waiting",
            f"devices for images {percent(run['decode_share'])}, images for devices {percent(run['device_share'])}",
        ),
        ("Lost workers", f"{number(run['lost_workers'])}, {plural(run['retries'], 'task')} tried again"),
        *_noise(run["noise_floor"]),
        *_arithmetic(run.get("arithmetic")),  # older audits have none
        *_micro_batch(run),
        ("Network evaluations", number(run["evaluations"])),
    ]


def _micro_batch(run: Summary) -> Pairs:
    """Say how many images the network took at a time, and where another number might have been faster."""
    if not run.get("batch_size"):
        return []
    said, found_on = plural(run["batch_size"], "image"), run.get("tuned_on")  # older audits do not say where
    if found_on:
        others = [name for name in run["device_names"] if name != found_on]
        said += f", the fastest on {found_on}" + (f"; not tried on {' and '.join(others)}" if others else "")
    return [("Micro-batch", said)]


def _noise(floor: Summary | None) -> Pairs:
    """Say how far growth moves with the arithmetic alone: batch size, precision, and the kind of derivative."""
    if floor is None:
        return []
    if floor["batch"] is None:
        return [("Noise floor of growth", f"not measured: {floor['problem']}")]
    batch = f"{score(floor['batch'])} over batch sizes"
    said = batch if floor["dtype"] is None else f"{batch}, {score(floor['dtype'])} against float64"
    pairs = [("Noise floor of growth", f"{said} ({plural(floor['rows'], 'image')})")]
    check = floor.get("derivative")  # older audits have none
    if check:
        said = f"{check['used']}, {percent(check['deviation'])} from central differences in {check['against']}"
        pairs.append(("Derivatives", f"{said} ({plural(check['images'], 'image')})"))
    return pairs


def _arithmetic(found: Summary | None) -> Pairs:
    """Say what the operations were that scores rest on, as they were observed for one image."""
    if not found:
        return []
    layouts = {True: "channels last", False: "channels first", None: "no convolutions"}
    said = [
        f"products in {' and '.join(found['dtype']) or 'no precision of torch'}",
        f"TF32 in {' and '.join(found['tf32'])}" if found["tf32"] else "TF32 nowhere",
        f"{' and '.join(found['attention'])} attention" if found["attention"] else "no attention",
        f"{layouts[found['channels_last']]}{_why(found.get('layout'))}",
        *([f"launched {found['launch']}"] if "launch" in found else []),  # older audits do not say it
    ]
    return [("Arithmetic", f"{', '.join(said)} (observed on {found['device']})")]


def _why(layout: str | None) -> str:
    return f" ({layout})" if layout else ""


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _listed(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
