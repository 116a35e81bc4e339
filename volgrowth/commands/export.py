"""Hand the findings of an audit to other tools: as tags in FiftyOne, or as a Croissant record.

Neither needs the tool to be installed here: the FiftyOne data set is the caller's, and a Croissant record is a dict for
`json.dump`.
"""

import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_mask
from volgrowth.analysis.caveats import list_caveats
from volgrowth.analysis.judging import JudgedAudit, Judgement
from volgrowth.audit.output.result import FINDINGS_FILE, Audit
from volgrowth.errors import UsageError
from volgrowth.records import FINDINGS
from volgrowth.storage.urls import is_url

if TYPE_CHECKING:
    from collections.abc import Callable

TAGS: "dict[str, Callable[[Judgement], np.ndarray]]" = {
    "memorized": lambda known: as_mask(known.findings["memorized"]),
    "reproduced": lambda known: known.proven,
    "precursor": lambda known: as_mask(known.findings["precursor"]),
    "near-duplicate": lambda known: as_mask(pc.greater(known.findings["copies"], 1)),
}
FIELDS = ("excess_growth", "p_value", "q_value", "cluster", "verified_hits")
PREFIX, VIEW = "volgrowth_", "volgrowth found"

CROISSANT = "http://mlcommons.org/croissant/1.0"
RAI = "http://mlcommons.org/croissant/RAI/1.0"

_CROISSANT_TERMS = (
    "citeAs column equivalentProperty extract field fileProperty fileObject fileSet format includes isLiveDataset "
    "jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source "
    "subField transform"
)
# the JSON-LD context that the specification prescribes: readers compare it
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    **{term: f"cr:{term}" for term in _CROISSANT_TERMS.split()},
}
LIMITATIONS = (
    "A score ranks images and is no probability. An image that is not flagged may be memorized all the same.",
    "Findings are about one model and one data set. They do not tell if an image was in the training set: one that "
    "left no trace in the model scores like one that was never seen.",
    "Near duplicates are found by a perceptual hash: cropped, turned or recoloured copies may not be.",
)


def fiftyone_tags(audit: Audit, dataset: Any, *, id_field: str | None = None) -> dict[str, int]:
    """Tag the samples of a FiftyOne data set with the findings of the audit.

    Samples that are rows of the audit get the tags `memorized`, `reproduced` (by samples of `volgrowth verify`),
    `precursor` and `near-duplicate` as they apply, in place of those set before, and the fields
    `volgrowth_excess_growth`, `volgrowth_p_value`, `volgrowth_q_value`, `volgrowth_cluster` and
    `volgrowth_verified_hits`. Other samples, tags and fields stay as they are. A data set, unlike a view of one, also
    gets the saved view "volgrowth found": the samples that are flagged or reproduced.

    Args:
        audit: a finished audit.
        dataset: a `fiftyone.Dataset`, or a view of one.
        id_field: the field of a sample that holds the audit's `image_id`. By default samples are matched by their
            file, which works only if the audited data set is a local folder of images. Of rows of one image with the
            same id the first counts.

    Returns:
        How many samples have each tag.

    Raises:
        UsageError: no sample is a row of the audit, rows are not files and `id_field` is not given, or the id of a
            sample is that of several rows with different images. Nothing is tagged then.
    """
    prefix = None if id_field else _prefix(audit)
    ids, values = dataset.values(["id", id_field or "filepath"])
    known, keys, example = _rows_of(audit, {value for value in values if isinstance(value, str)}, prefix)
    places = _places(known.findings, keys, audit)
    rows = {sample: places[value] for sample, value in zip(ids, values, strict=True) if value in places}
    if not rows:
        raise UsageError(
            f"none of the {len(ids)} samples is a row of {audit.store.url}: expected "
            + (f"image ids such as {example!r} in the field {id_field}" if id_field else f"files such as {example}")
        )
    at, counts = np.array(list(rows.values())), {}
    found = known.findings.take(pa.array(at))
    dataset.select(list(rows)).untag_samples(list(TAGS))
    for tag, chosen in TAGS.items():
        samples = [sample for sample, yes in zip(rows, chosen(known)[at].tolist(), strict=True) if yes]
        dataset.select(samples).tag_samples(tag)
        counts[tag] = len(samples)
    for name in FIELDS:
        if found[name].null_count < len(found):  # of missing values alone a field's type cannot be told
            by_sample = dict(zip(rows, found[name].to_pylist(), strict=True))
            dataset.set_values(f"{PREFIX}{name}", by_sample, key_field="id")
    if hasattr(dataset, "save_view"):
        dataset.save_view(VIEW, dataset.match_tags(["memorized", "reproduced"]), overwrite=True)
    return counts


def _rows_of(audit: Audit, wanted: set[str], prefix: str | None) -> tuple[Judgement, list[str], str]:
    """Return the rows of some keys, judged, with the key of each, and the key of the first row as an example.

    A key is an image id, or, with a `prefix`, this and the row's source.
    """
    judged, names = JudgedAudit(audit, audit.summary.get("verification")), pa.array(sorted(wanted), pa.string())
    tables: list[pa.Table] = []
    keys, example = list[str](), ""
    columns = ("image_id", "memorized", "precursor", "copies", "identical", *FIELDS)
    for part in judged.parts(findings=columns, scores=["source"]):
        table = part.findings
        key = table["image_id"] if prefix is None else pc.binary_join_element_wise(prefix, table["source"], "")
        example = example or key[0].as_py()
        mask = pc.fill_null(pc.is_in(key, value_set=names), False)
        tables.append(table.filter(mask))
        keys += key.filter(mask).to_pylist()
    return judged.pictures.judge(pa.concat_tables(tables).combine_chunks()), keys, example


def _places(rows: pa.Table, keys: list[str], audit: Audit) -> dict[str, int]:
    """Return the place among some rows of each key, or raise the UsageError for one that names different images."""
    images = pc.coalesce(rows["identical"], rows["row"]).to_pylist()
    places: dict[str, int] = {}
    for place, key in enumerate(keys):
        first = places.setdefault(key, place)
        if images[first] != images[place]:
            one, other = (rows["row"][each].as_py() for each in (first, place))
            raise UsageError(
                f"rows {one} and {other} of {audit.store.url} are different images and share the id {key!r}, so that "
                f"samples cannot be told apart by it: audit with an id_column in which each image has an id of its own"
            )
    return places


def _prefix(audit: Audit) -> str:
    """Return the folder of the data set as the beginning of its files' paths."""
    data = audit.frozen.data
    if data.kind != "folder" or is_url(data.name):
        raise UsageError(
            f"the rows of {data.name} are not files here: give id_field, the field of a sample that holds the audit's "
            "image_id"
        )
    return os.path.join(data.name, "")


def croissant_record(audit: Audit, **properties: Any) -> dict[str, Any]:
    """Describe the findings of an audit by a Croissant 1.0 record, with RAI 1.0 properties that say what they mean.

    The record names `findings.parquet` by a relative path: write it into the audit's folder.

    Args:
        audit: a finished audit.
        **properties: properties that only the publisher knows, such as `license="..."` or `url="..."`.

    Returns:
        The record as JSON values, for `json.dump`.
    """
    frozen, summary = audit.frozen, audit.summary
    split = f" ({frozen.data.split})" if frozen.data.split else ""
    record = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [CROISSANT, RAI],
        "name": f"Memorization of {os.path.basename(frozen.data.name.rstrip('/'))}{split}",
        "description": (
            f"The findings of volgrowth {summary['volgrowth']} about each image of {frozen.data.name}{split}: "
            f"whether the model {frozen.model.name} ({frozen.model.hash[:19]}) has memorized it."
        ),
        "datePublished": summary["created"][:10],
        "isBasedOn": {"@type": "sc:Dataset", "name": frozen.data.name, "identifier": frozen.data.fingerprint},
        **_responsible(summary),
        "distribution": [_file(audit)],
        "recordSet": [_records()],
    }
    return record | properties


def _responsible(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the RAI properties: how images were labelled, the result, and its limits."""
    counts, measure, detection = summary["counts"], summary["measure"], summary["detection"]
    protocol = [
        f"Every image was scored under the model by the preset {measure['preset']} ({measure['evaluations']} network "
        "evaluations: growth of volume along the probability flow), less what images of its complexity show."
    ]
    analysis, limitations = [], [*LIMITATIONS]
    limitations += list_caveats(summary)
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
            f"{proof['samples']} samples of the model reproduce {proof['reproduced_images']} images, "
            f"{proof['flagged_reproduced']} of them among the {proof['flagged']} flagged ones (95% interval of the "
            f"share of flags {low:.3f} to {high:.3f})."
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
    with audit.store.local_file(FINDINGS_FILE) as path, open(path, "rb") as file:
        digest, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    return {
        "@type": "cr:FileObject",
        "@id": FINDINGS_FILE,
        "name": FINDINGS_FILE,
        "contentUrl": FINDINGS_FILE,
        "contentSize": f"{size} B",
        "encodingFormat": "application/x-parquet",
        "sha256": digest,
    }


def _records() -> dict[str, Any]:
    """Describe the columns of the findings, in the words of `volgrowth.records`."""
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
