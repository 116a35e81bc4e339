"""A finished audit in the forms that other tools take: tags in FiftyOne, a Croissant record.

Neither needs the library it is for: FiftyOne's data set is the caller's, and a Croissant record is a dict, written by
`json.dump`.
"""

import hashlib
import os
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.audit.output.result import FINDINGS_FILE, Audit
from volgrowth.errors import UsageError
from volgrowth.records import FINDINGS
from volgrowth.storage.urls import is_url

if TYPE_CHECKING:
    from collections.abc import Callable

TAGS: "dict[str, Callable[[pa.Table], pa.ChunkedArray]]" = {
    "memorized": lambda findings: findings["memorized"],
    "precursor": lambda findings: findings["precursor"],
    "near-duplicate": lambda findings: pc.greater(findings["copies"], 1),
}
FIELDS = ("excess_growth", "p_value", "q_value", "cluster", "verified_hits")
PREFIX = "volgrowth_"

CROISSANT = "http://mlcommons.org/croissant/1.0"
RAI = "http://mlcommons.org/croissant/RAI/1.0"

# The context of the specification, word for word: readers compare it.
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
LIMITATIONS = (
    "A score ranks images and is no probability. An image that is not flagged may be memorized all the same.",
    "Findings speak of one model and one data set. Membership in the training set is another question: an image that "
    "left no trace in the model scores like one that was never seen.",
    "Near duplicates are found by a perceptual hash: cropped, turned or recoloured copies may not be.",
)


def fiftyone_tags(audit: Audit, dataset: Any, *, id_field: str | None = None) -> dict[str, int]:
    """Tag the samples of a FiftyOne data set with what the audit found of them.

    The tags `memorized`, `precursor` and `near-duplicate` are set anew on the samples that are rows of the audit, and
    the fields `volgrowth_excess_growth`, `volgrowth_p_value`, `volgrowth_q_value`, `volgrowth_cluster` and
    `volgrowth_verified_hits` beside them. Other samples, tags and fields stay as they are.

    Args:
        dataset: a `fiftyone.Dataset`, or a view of one.
        id_field: the field of a sample that is the audit's `image_id`. Without it a sample is a row when its file is,
            which only a folder of images has.

    Returns:
        how many samples have each tag.

    Raises:
        UsageError: no sample is a row of the audit, or rows are no files and `id_field` is not given.
    """
    keys = _paths(audit) if id_field is None else audit.findings["image_id"].to_pylist()
    places = {key: place for place, key in enumerate(keys)}
    ids, values = dataset.values(["id", id_field or "filepath"])
    rows = {sample: places[value] for sample, value in zip(ids, values, strict=True) if value in places}
    if not rows:
        raise UsageError(
            f"none of the {len(ids)} samples is a row of {audit.store.url}: expected "
            + (f"image ids such as {keys[0]!r} in the field {id_field}" if id_field else f"files such as {keys[0]}")
        )
    found = audit.findings.take(pa.array(rows.values(), pa.int64()))
    dataset.select(list(rows)).untag_samples(list(TAGS))
    counts = {}
    for tag, chosen in TAGS.items():
        samples = [sample for sample, yes in zip(rows, chosen(found).to_pylist(), strict=True) if yes]
        dataset.select(samples).tag_samples(tag)
        counts[tag] = len(samples)
    for name in FIELDS:
        if found[name].null_count < len(found):  # of missing values alone a field's type cannot be told
            by_sample = dict(zip(rows, found[name].to_pylist(), strict=True))
            dataset.set_values(f"{PREFIX}{name}", by_sample, key_field="id")
    return counts


def _paths(audit: Audit) -> list[str]:
    """Absolute paths of the rows' files."""
    data = audit.plan.data
    if data.kind != "folder" or is_url(data.name):
        raise UsageError(
            f"the rows of {data.name} are no files here: give id_field, the field of a sample that holds the audit's "
            "image_id"
        )
    return [os.path.join(data.name, source) for source in audit.scores["source"].to_pylist()]


def croissant(audit: Audit, **properties: Any) -> dict[str, Any]:
    """A Croissant 1.0 record of the findings, with RAI 1.0 properties that say what they mean.

    It describes `findings.parquet`, by a path relative to where the record is: write it into the audit's folder. What
    only a publisher knows is given by name, `croissant(audit, license="...", url="...")`.
    """
    plan, summary = audit.plan, audit.summary
    split = f" ({plan.data.split})" if plan.data.split else ""
    record = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [CROISSANT, RAI],
        "name": f"Memorization of {os.path.basename(plan.data.name.rstrip('/'))}{split}",
        "description": (
            f"What volgrowth {summary['volgrowth']} found out about each image of {plan.data.name}{split}: whether the "
            f"model {plan.model.name} ({plan.model.hash[:19]}) has memorized it."
        ),
        "datePublished": summary["created"][:10],
        "isBasedOn": {"@type": "sc:Dataset", "name": plan.data.name, "identifier": plan.data.fingerprint},
        **_responsible(summary),
        "distribution": [_file(audit)],
        "recordSet": [_records()],
    }
    return record | properties


def _responsible(summary: dict[str, Any]) -> dict[str, Any]:
    """The RAI properties: how images were labelled, what came out, what it does not say."""
    counts, measure, detection = summary["counts"], summary["measure"], summary["detection"]
    protocol = [
        f"Every image was scored under the model by the preset {measure['preset']} ({measure['evaluations']} network "
        "evaluations: growth of volume along the probability flow), less what images of its complexity show."
    ]
    analysis, limitations = [], [*LIMITATIONS]
    if detection:
        protocol.append(f"Flags: {detection['method']}.")
        limitations += detection["warnings"]
        analysis.append(
            f"{detection['memorized']} distinct images are flagged as memorized at a false-discovery rate of "
            f"{detection['fdr']:g}; about {detection['expected_false']:g} of them are expected to be false."
        )
    if proof := summary.get("verification"):
        low, high = proof["precision_interval"]
        analysis.append(
            f"{proof['samples']} samples of the model reproduce {proof['flagged_reproduced']} of the "
            f"{proof['flagged']} flagged images (95% interval of the share {low:.3f} to {high:.3f})."
        )
    return {
        "rai:machineAnnotationTools": [f"volgrowth {summary['volgrowth']}"],
        "rai:dataAnnotationProtocol": protocol,
        "rai:dataAnnotationAnalysis": analysis or ["No image was judged: there are too few to calibrate with."],
        "rai:dataLimitations": limitations,
        "rai:dataCollectionMissingData": (
            f"{counts['rows'] - counts['ok']} of {counts['rows']} images could not be scored: their scores are missing."
        ),
        "rai:dataUseCases": ["Removing or down-weighting training images that a model has memorized."],
    }


def _file(audit: Audit) -> dict[str, Any]:
    data = audit.store.read(FINDINGS_FILE)
    return {
        "@type": "cr:FileObject",
        "@id": FINDINGS_FILE,
        "name": FINDINGS_FILE,
        "contentUrl": FINDINGS_FILE,
        "contentSize": f"{len(data)} B",
        "encodingFormat": "application/x-parquet",
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _records() -> dict[str, Any]:
    """The columns of the findings, with what `volgrowth.records` says of each."""
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"findings/{field.name}",
            "name": field.name,
            "description": field.metadata[b"meaning"].decode(),
            "dataType": _data_type(field.type),
            "source": {"fileObject": {"@id": FINDINGS_FILE}, "extract": {"column": field.name}},
        }
        for field in FINDINGS
    ]
    return {
        "@type": "cr:RecordSet",
        "@id": "findings",
        "name": "findings",
        "description": "One record per image of the audited data set.",
        "key": {"@id": "findings/row"},
        "field": fields,
    }


def _data_type(type_: pa.DataType) -> str:
    if pa.types.is_boolean(type_):
        return "sc:Boolean"
    if pa.types.is_integer(type_):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(type_) else "sc:Text"
