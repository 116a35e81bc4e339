"""Sentences of the page and the terminal: the verdict, the headline numbers, and the reason for each card."""

from typing import Any, NamedTuple

from volgrowth.analysis.caveats import list_caveats
from volgrowth.plain import plain
from volgrowth.records import Mark, Status
from volgrowth.report.formats import approximate, number, percent, plural, rough, score, visible

Summary = dict[str, Any]

STATUS_MEANING = {
    Status.OK: "Scored.",
    Status.UNDECODABLE: "The bytes are missing, truncated or no image.",
    Status.WRONG_SHAPE: "An image, but not one this model could have been trained on.",
    Status.TOO_LARGE: "More bytes, pixels or scans than a decoder should be asked for (a decompression bomb).",
    Status.NON_FINITE: "The measurement gave no finite number.",
    Status.WRONG_CONDITION: "A class or caption that the model cannot be given.",
    Status.CRASHED: "Scoring the image ended its process.",
    Status.TIMED_OUT: "Scoring the image did not end.",
}

MARK_MEANING = {
    Mark.ABOVE_CEILING: "Growth beyond what any exact denoiser can have: part of the score is network error.",
    Mark.SIGN_FLIP: "A step reversed a direction: it is too long for the curvature there.",
    Mark.CAPTION_CUT: "The model sees only the beginning of the caption.",
}


class Headline(NamedTuple):
    """A number of the verdict, with its label and what it means."""

    label: str
    value: str
    note: str


def has_error_rate(summary: Summary) -> bool:
    """Return True if p-values come from held-out images, so that the error rate of flags is promised, not assumed."""
    return summary["detection"] is not None and summary["detection"]["null"] == "held-out"


def title(summary: Summary) -> str:
    """Return the verdict in one line. `summary` is the content of `summary.json`, here and below."""
    counts, truth = summary["counts"], summary.get("verification")
    if not counts["rows"]:
        return "The data set holds no images"
    if not counts["ok"]:
        return "No image could be scored"
    if summary["detection"]:
        flagged, more = summary["detection"]["memorized"] or 0, proven_unflagged(truth)
        verb = "is" if flagged == 1 else "are"
        assumed = "" if has_error_rate(summary) else ", on an assumption"
        if more and not flagged:
            return f"The model reproduces {plural(more, 'training image')}, and none is flagged as memorized{assumed}"
        if summary["detection"].get("tests") == 0:
            return f"{plural(counts['ok'], 'image')} scored, and none could be judged"
        said = f"{plural(flagged, 'image') if flagged else 'No images'} {verb} flagged as memorized{assumed}"
        return said + (_proof(flagged, truth["flagged_reproduced"], more) if truth and flagged else "")
    if truth:
        return f"The model reproduces {plural(truth['reproduced_images'], 'training image')}"
    return f"{plural(counts['ok'], 'image')} ranked, none judged"


def _proof(flagged: int, proven: int, more: int) -> str:
    """Say in the title how many flags samples proved, and how many images beside them."""
    if flagged == 1:
        said = "it" if proven else "nothing of it"
    else:
        said = "all of them" if proven == flagged else f"{number(proven) if proven else 'none'} of them"
    return f", and samples prove {said}" + (f" and {number(more)} more" if more else "")


def headline_lines(summary: Summary) -> list[str]:
    """Return the verdict in one line, and a line for each caveat that changes what it means, for a terminal."""
    return [title(summary), *(f"  but: {plain(caveat)}" for caveat in list_caveats(summary))]


def proven_unflagged(verification: Summary | None) -> int:
    """Return the number of images that samples reproduced though they are not flagged."""
    return verification["reproduced_images"] - verification["flagged_reproduced"] if verification else 0


def verdict_sentence(summary: Summary) -> str:
    """Return the sentence below the title: how far the flags can be trusted, before and after samples were drawn."""
    counts, detection, truth = summary["counts"], summary["detection"], summary.get("verification")
    if not counts["rows"]:
        return "There was nothing to audit."
    if not counts["ok"]:
        return f"{plural(counts['rows'], 'image')} audited; none could be scored, and the reasons are listed below."
    if not detection:
        return (
            "This page ranks images and promises no error rate: there are too few to tell how high an innocent image "
            "can score."
        )
    flagged, rate = detection["memorized"] or 0, percent(detection["fdr"])
    if detection.get("tests") == 0:
        return "No image could be judged: all are simpler or more complex than the images that calibrated."
    if not flagged:
        said = f"At a false discovery rate of {rate} no image stands out from the others."
        return f"{said} That is no proof that none is memorized."
    allowed = (
        f"The false discovery rate of {rate} allows, on average, about {approximate(detection['expected_false'])} of "
        f"{plural(flagged, 'flag')} to be false"
    )
    if not truth:
        return f"{allowed}; no samples were drawn from the model yet, so that none of them is proven."
    unproven = flagged - truth["flagged_reproduced"]
    if not unproven:
        return f"{allowed}; that was before samples were drawn, which then proved every one: none of these is false."
    return (
        f"{allowed}; samples have since proven {number(truth['flagged_reproduced'])}, so that at most the other "
        f"{number(unproven)} can be."
    )


def verdict_rows(summary: Summary) -> list[Headline]:
    """Return what was found and what was proven: a name, a number, and what it means, the weightiest first."""
    counts, detection, calibration = summary["counts"], summary["detection"], summary["calibration"]
    audited = Headline("audited", number(counts["rows"]), _audited(counts))
    if not counts["ok"]:
        return [audited]
    rows = _flagged(detection) if detection else []
    rows += proof_rows(summary["verification"]) if summary.get("verification") else []
    rows += _driven_and_bounded(detection) if detection else []
    duplicates = summary["duplicates"]
    rows += [
        audited,
        Headline(
            "duplicates",
            number(duplicates["rows_in_clusters"]),
            f"Rows that are copies or near duplicates of one another, in {plural(duplicates['clusters'], 'group')}, "
            f"the largest of {plural(duplicates['largest'], 'row')}.{_embedding_sentence(duplicates)}",
        ),
    ]
    if summary.get("cascade"):
        told = [*cascade_sentences(summary["cascade"]), "Figures and ranks on this page are those of measured images."]
        rows.append(Headline("screened out", number(summary["cascade"]["screened_out"]), " ".join(told)))
    if above := summary["marks"].get(Mark.ABOVE_CEILING):
        rows.append(Headline("above ceiling", number(above), _above_ceiling(summary)))
    if calibration:
        said = "Share of raw growth that an image's complexity explains, which calibration takes out."
        rows.append(Headline("complexity explains", percent(calibration["r2"]), said))
    return rows


def _above_ceiling(summary: Summary) -> str:
    """Say what the mark means, and why it changes no flag."""
    beside = "held-out images" if has_error_rate(summary) else "the other images"
    return (
        f"Rows whose raw growth is more than an exact model could have: part of it is error of the network. It changes "
        f"no flag, since images are compared with {beside}, on which the network errs alike; do not read the raw "
        f"growth of such a row by itself."
    )


def failure_sentences(summary: Summary) -> list[str]:
    """Say why rows have no score, the most frequent reason first; the empty list if all have one."""
    said = []
    for whose, name in (("", "audited"), ("held-out ", "held_out")):
        failures = (summary.get("failures") or {}).get(name) or {"reasons": [], "other_rows": 0}
        for reason in failures["reasons"]:
            why = visible(reason["error"] or STATUS_MEANING.get(reason["status"], "no reason given"), 400)
            said.append(
                f"{plural(reason['rows'], f'{whose}row')} {reason['status'].replace('_', ' ')}, such as row "
                f"{reason['row']} ({visible(reason['source'])}): {why}"
            )
        if failures["other_rows"]:
            said.append(
                f"{plural(failures['other_rows'], f'{whose}row')} for rarer reasons, which scores have as error"
            )
    return said


def cascade_sentences(cascade: Summary | None) -> list[str]:
    """Say what a cascade left out, saved and may have lost; without a cascade, the empty list."""
    if cascade is None:
        return []
    recall, sample, missed = cascade["recall_at_least"], cascade["sample"], cascade["missed_in_sample"]
    said = (
        f"This audit is a cascade: of {plural(cascade['images'], 'distinct image')} a screen let "
        f"{number(cascade['kept'])} through, and only these, one row of each, were measured by the preset and could be "
        f"flagged, as precursors too. It took {percent(cascade['evaluations_share'])} of a whole audit's evaluations."
    )
    if not cascade["screened_out"]:
        return [said]
    of = f"Of the {number(cascade['screened_out'])} others {number(sample)} were measured at random: "
    lost = f"{number(missed) if missed else 'none'} of them would have been flagged"
    if recall is None:
        return [said, f"{of}{lost}, and a whole audit would have flagged none."]
    return [
        said,
        f"{of}{lost}. With {percent(cascade['confidence'])} confidence the screen lost no more than "
        f"{plural(cascade['flags_lost_at_most'], 'flag')}, and {percent(recall)} or more of a whole audit's flags were "
        f"found.",
    ]


def _audited(counts: Summary) -> str:
    rows, scored = counts["rows"] or 0, counts["ok"] or 0
    if not rows:
        return "There was nothing to audit."
    if scored == rows:
        return f"{plural(rows, 'image')} audited, every one scored."
    return (
        f"{plural(rows, 'image')} audited, {number(scored)} scored; "
        f"{number(rows - scored)} could not be scored and are listed below."
    )


def _flagged(detection: Summary) -> list[Headline]:
    """Return the rows of the verdict on what was found."""
    flagged, rate = detection["memorized"] or 0, percent(detection["fdr"])
    said = f"Distinct images flagged as memorized at a false discovery rate of {rate}."
    if (rows := detection["memorized_rows"] or 0) > flagged:
        said += f" With their copies they are {plural(rows, 'row')} of the data set."
    return [Headline("flagged", number(flagged), said)]


def _driven_and_bounded(detection: Summary) -> list[Headline]:
    """Return the rows of the verdict on what drives memorization, on cuts, and on precursors."""
    rows = []
    if detection["memorized"]:
        duplicated, intrinsic = detection["memorized_duplicated"], detection["memorized_intrinsic"]
        rows.append(Headline("duplicated", number(duplicated), _driven_by(duplicated, intrinsic)))
    if bounded := _bounded(detection.get("false_bounds") or []):
        rows.append(bounded)
    if detection["precursors"]:
        said = (
            "Distinct images whose denoising loss is lower than complexity explains: the model knows them well, and "
            "may come to reproduce them. Plain membership in the training set can also cause that; look at the next "
            "checkpoint before removing any."
        )
        rows.append(Headline("precursors", number(detection["precursors"]), said))
    return rows


def _bounded(bounds: list[Summary]) -> Headline | None:
    """Say how many of the most suspicious images are innocent at most, whatever cut is chosen after looking."""
    told = [bound for bound in bounds if 2 * bound["innocent_at_most"] <= bound["first"]][-3:]
    if not told:
        return None
    first = ", and ".join(f"of the first {number(b['first'])} at most {number(b['innocent_at_most'])}" for b in told)
    said = (
        f"In the order of evidence, {first} are innocent, with 90% confidence for every cut at once: one may be chosen "
        "after looking at the images."
    )
    return Headline("false at most", f"{number(told[-1]['innocent_at_most'])} of {number(told[-1]['first'])}", said)


def _embedding_sentence(duplicates: dict[str, Any]) -> str:
    """Say which embeddings made near duplicates of images as well, after a space; nothing if none did."""
    given = duplicates.get("embeddings")
    if not given:
        return ""
    return (
        f" Found by perceptual hash and by column {given['column']}, from a cosine of {given['similarity']:g} on, "
        f"which joined {plural(given['joined_groups'], 'image')} to others."
    )


def _driven_by(duplicated: int, intrinsic: int) -> str:
    """Say what may have driven memorization of flagged images: copies and near duplicates, or the images themselves."""
    them = "it" if duplicated + intrinsic == 1 else "any of them" if not duplicated else "all of them"
    if not duplicated:
        return f"No copy or near duplicate of {them} is in the data set: duplication is not what drives memorization."
    if not intrinsic:
        return f"Copies or near duplicates of {them} are in the data set: duplication may be what drives memorization."
    return (
        f"Driven by duplication may be {number(duplicated)}, with copies or near duplicates in the data set; "
        f"{number(intrinsic)} {'has' if intrinsic == 1 else 'have'} none and would be intrinsic."
    )


def proof_sentences(verification: Summary) -> list[str]:
    """Say what samples proved, from the summary's part `verification`."""
    return [row.note for row in proof_rows(verification)]


def proof_rows(verification: Summary) -> list[Headline]:
    """Return what samples proved: a name, a number, and what it means."""
    reproduced, flagged = verification["reproduced_images"], verification["flagged"]
    rows = [Headline("proven", number(reproduced), _reproduced(verification))]
    if flagged:
        share = percent(verification["flagged_reproduced"] / flagged)
        rows.append(Headline("precision", share, _precision(verification)))
    if stopped := verification.get("stopped"):
        usual, early = stopped["usual"], stopped["early"]
        said = (
            f"Of the same samples stopped at noise level {stopped['level']:g} and denoised from there, "
            f"{number(early['copies'])} are copies instead of {number(usual['copies'])}, and they lie at a distance of "
            f"{score(early['distance'])} instead of {score(usual['distance'])} from the nearest image that they are no "
            f"copy of."
        )
        rows.append(Headline("stopped early", number(early["copies"]), said))
    if rates := verification.get("rates"):
        total = rates["copies_per_million"]
        value = f"{rough(total['rate'])} per million" if total else number(rates["measured"])
        rows.append(Headline("rate of copies", value, " ".join(_rate_sentences(rates))))
    returns = verification["returns"]
    if returns:
        best = max(range(len(returns["levels"])), key=lambda k: returns["flagged"][k] - returns["controls"][k])
        said = (
            f"Noised to level {returns['levels'][best]:g} and decoded, flagged images come back in "
            f"{percent(returns['flagged'][best])} of the draws, unflagged ones of the same complexity in "
            f"{percent(returns['controls'][best])}."
        )
        rows.append(Headline("returns", percent(returns["flagged"][best]), said))
    return rows


def _reproduced(verification: Summary) -> str:
    raw, calibrated = verification["raw"], verification.get("evidence") or verification["calibrated"]
    name = "Evidence" if verification.get("evidence") else "Excess growth"
    reproduced = verification["reproduced_images"]
    said = (
        f"{plural(verification['samples'], 'sample')} drawn from the model reproduce {plural(reproduced, 'image')} of "
        f"the data set."
    )
    if more := proven_unflagged(verification):
        said += (
            f" {plural(more, 'image')} of these {'is' if more == 1 else 'are'} not flagged: samples prove what growth "
            f"does not show at this rate."
        )
    if reproduced and calibrated["auroc"] is not None:
        said += (
            f" {name} finds {percent(calibrated['tpr_at_1_fpr'])} of them at 1% false alarms (AUROC "
            f"{score(calibrated['auroc'])}); raw growth finds {percent(raw['tpr_at_1_fpr'])} (AUROC "
            f"{score(raw['auroc'])})."
        )
    return said


def _precision(verification: Summary) -> str:
    flagged, proven = verification["flagged"], verification["flagged_reproduced"]
    (low, high), unhit = verification["precision_interval"], len(verification["unhit_rows"])
    return (
        f"Of {plural(flagged, 'flagged image')} {number(proven)} are reproduced: a precision of "
        f"{percent(proven / flagged)}, 95% interval {percent(low)} to {percent(high)}. "
        f"{number(unhit) if unhit else 'None'} of the flagged images had no hit at all"
        f"{', which more samples may still change' if unhit else ''}."
    )


def _rate_sentences(rates: Summary) -> list[str]:
    """Say how often the model makes the flagged and proven images, and whether samples agree."""
    images, measured = rates["images"], rates["measured"]
    if not images:
        return ["No image is flagged, proven or asked for, so that no rate was measured."]
    said = [f"How often the model makes an image was measured for {number(measured)} of {plural(images, 'image')}"]
    said[0] += "." if measured == images else f"; for {number(images - measured)} it is not measurable."
    asked = rates.get("asked", 0)
    if asked:
        said.append(f"{number(asked)} of these images {'was' if asked == 1 else 'were'} asked for.")
    if rates["found"] > images - asked:
        left = rates["found"] - (images - asked)
        said.append(
            f"Of the flagged and proven ones those of most evidence were tried; {number(left)} others were not."
        )
    if rates["conditional"] and measured:
        said.append("Each rate is that of samples under the image's own condition.")
    if total := rates["copies_per_million"]:
        said.append(
            f"About {rough(total['rate'])} of a million samples ({rough(total['low'])} to {rough(total['high'])}) "
            f"would be copies of one of these images."
        )
    if checked := rates["checked"]:
        said.append(
            f"{plural(checked['images'], 'image')} of these {'was' if checked['images'] == 1 else 'were'} hit by the "
            f"samples: the rate is within a factor of {checked['factor']:g} of the share of hits for "
            f"{number(checked['within'])}, and {checked['ratio']:.2g} times that share in the geometric mean."
        )
    return said


def card_reason(card: dict[str, Any], fdr: float | None) -> str:
    """Say in one line why a card stands where it does in the ranking. `fdr` is the rate at which images are flagged."""
    evidence = card["evidence"]
    if evidence is None and card["status"] == Status.OK and card["p"] is not None:
        if card["growth"] is None:
            return "Screened out: not measured any further."
        return "Of one colour: a model makes such images whether or not it has seen them."
    if evidence is None:
        return f"No calibrated score: {STATUS_MEANING.get(card['status'], 'not measured.').lower()}"
    name = "Excess growth" if card.get("parts") is None else "Evidence"
    place = f"{name} higher than {percent(card['share_below'])} of distinct images"
    if evidence <= 0:
        said = "Nothing beyond what its complexity explains"
    elif card["memorized"]:
        said = f"{place}; flagged at a false discovery rate of {percent(fdr)}"
    elif card["outside_range"]:
        said = f"{place}, but not judged: no held-out image is as simple, or as complex"
    else:
        said = place if card["p"] is None else f"{place}, not enough to be flagged"
    return f"{said}; samples reproduced it." if card["reproduced"] and not card["memorized"] else f"{said}."
