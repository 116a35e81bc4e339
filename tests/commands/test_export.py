"""Exports for other tools. tests/commands/test_fiftyone.py asks the real FiftyOne, where it is installed."""

import json
import math
from pathlib import Path
from typing import Any

import mlcroissant
import numpy as np
import pytest
from PIL import Image

import volgrowth as vg
from tests.audit.output.test_views import FLAGGED, ROWS, small_audit
from volgrowth.audit.output.result import Audit
from volgrowth.commands import export as exports
from volgrowth.demo.cases import write_image_parquet
from volgrowth.errors import UsageError


@pytest.fixture(scope="module")
def audit(tiny_model: Path, digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return small_audit(tmp_path_factory.mktemp("exports"), tiny_model, digits)


class Samples:
    """What `fiftyone_tags` uses of a `fiftyone.Dataset`, as FiftyOne 1.22 documents it."""

    def __init__(self, samples: dict[str, dict[str, Any]], chosen: list[str] | None = None):
        self.samples = samples
        self.chosen = list(samples) if chosen is None else chosen

    def values(self, fields: list[str]) -> list[list[Any]]:
        return [[{"id": one, **self.samples[one]}[field] for one in self.chosen] for field in fields]

    def select(self, ids: list[str]) -> "Samples":
        return Samples(self.samples, [one for one in self.chosen if one in ids])

    def match_tags(self, tags: list[str]) -> "Samples":
        return Samples(self.samples, [one for one in self.chosen if set(tags) & set(self.samples[one]["tags"])])

    def tag_samples(self, tag: str) -> None:
        for one in self.chosen:
            self.samples[one]["tags"] = sorted({*self.samples[one]["tags"], tag})

    def untag_samples(self, tags: list[str]) -> None:
        for one in self.chosen:
            self.samples[one]["tags"] = [tag for tag in self.samples[one]["tags"] if tag not in tags]

    def set_values(self, field: str, values: dict[str, Any], key_field: str) -> None:
        assert key_field == "id"
        assert any(value is not None for value in values.values())
        for one, value in values.items():
            self.samples[one][field] = value


def test_samples_are_tagged_by_id(audit):
    samples = {f"sample{row}": {"name": f"<b>{row}", "tags": ["train", "memorized"]} for row in range(ROWS)}
    samples["stranger"] = {"name": "elsewhere", "tags": ["memorized"]}
    counts = exports.fiftyone_tags(audit, Samples(samples), id_field="name")
    assert counts["memorized"] == len(FLAGGED)
    assert counts["near-duplicate"] == audit.clusters(images=False).num_rows
    tagged = [row for row in range(ROWS) if "memorized" in samples[f"sample{row}"]["tags"]]
    assert tagged == FLAGGED
    assert all("train" in samples[f"sample{row}"]["tags"] for row in range(ROWS))
    assert samples["stranger"] == {"name": "elsewhere", "tags": ["memorized"]}
    assert samples["sample61"]["volgrowth_excess_growth"] == 61
    assert "volgrowth_verified_hits" not in samples["sample61"]
    once = json.dumps(samples)
    assert exports.fiftyone_tags(audit, Samples(samples), id_field="name") == counts
    assert json.dumps(samples) == once


def test_samples_are_tagged_by_file(tiny_model, digits, tmp_path):
    (tmp_path / "data").mkdir()
    for row, image in enumerate(digits[:4]):
        Image.fromarray(image[0]).save(tmp_path / f"data/{row}.png")
    data, out = str(tmp_path / "data"), str(tmp_path / "out")
    config = vg.AuditConfig.build(
        model=str(tiny_model), data=data, output=out, engine="local", measure={"preset": "paper"}
    )
    audit = vg.run_audit(config, quiet=True)
    samples = {str(row): {"filepath": str(tmp_path / f"data/{row}.png"), "tags": []} for row in range(6)}
    assert exports.fiftyone_tags(audit, Samples(samples)) == dict.fromkeys(exports.TAGS, 0)
    assert [samples[str(row)].get("volgrowth_cluster") for row in range(6)] == [0, 1, 2, 3, None, None]
    assert exports.croissant_record(audit)["rai:dataAnnotationAnalysis"][0].startswith("No image was judged")


def named(folder: Path, model: Path, digits: np.ndarray, names: list[str]) -> Audit:
    """An audit whose rows have these ids; the last row is a copy of the first."""
    images = [*digits[: len(names) - 1], digits[0]]
    write_image_parquet(folder / "named.parquet", np.stack(images), names)
    config = vg.AuditConfig.build(
        model=str(model), data=str(folder / "named.parquet"), output=str(folder / "named"), engine="local",
        id_column="name", measure={"preset": "paper"},
    )  # fmt: skip
    return vg.run_audit(config, quiet=True)


def test_an_id_of_different_images_tags_nothing(tiny_model, digits, tmp_path):
    """Rows 1 and 2 are different images of one id; rows 0 and 4 are one image."""
    audit = named(tmp_path, tiny_model, digits, ["a", "b", "b", "c", "a"])
    samples = {name: {"name": name, "tags": ["memorized"]} for name in "abc"}
    before = json.dumps(samples)
    with pytest.raises(UsageError, match=r"rows 1 and 2 of .* are different images and share the id 'b', so that"):
        exports.fiftyone_tags(audit, Samples(samples), id_field="name")
    assert json.dumps(samples) == before
    del samples["b"]  # nobody asks for what stands for two images
    assert exports.fiftyone_tags(audit, Samples(samples), id_field="name")["near-duplicate"] == 1
    assert samples["a"]["volgrowth_cluster"] == 0
    assert samples["c"]["volgrowth_cluster"] == 3


def test_samples_that_cannot_be_matched_are_refused(audit):
    with pytest.raises(UsageError, match="give id_field"):
        exports.fiftyone_tags(audit, Samples({}))
    strangers = Samples({"a": {"name": "elsewhere", "tags": []}})
    with pytest.raises(UsageError, match=r"none of the 1 samples .* such as '<b>0' in the field name"):
        exports.fiftyone_tags(audit, strangers, id_field="name")


def test_a_croissant_record_is_valid_and_its_records_can_be_read(audit, tmp_path, caplog):
    record = exports.croissant_record(audit, license="https://creativecommons.org/publicdomain/zero/1.0/")
    file = Path(audit.store.path("croissant.json"))
    file.write_text(json.dumps(record))
    read = mlcroissant.Dataset(jsonld=str(file))
    assert not read.metadata.ctx.issues.errors
    assert "context" not in caplog.text
    records = list(read.records("findings"))
    assert [one["findings/row"] for one in records] == list(range(ROWS))
    assert [row for row, one in enumerate(records) if one["findings/memorized"]] == FLAGGED
    assert math.isclose(records[3]["findings/growth"], audit.findings["growth"][3].as_py())
    assert read.metadata.machine_annotation_tools == [f"volgrowth {vg.__version__}"]
    assert read.metadata.license == ["https://creativecommons.org/publicdomain/zero/1.0/"]


def test_a_croissant_record_says_what_the_audit_promises(audit):
    record = exports.croissant_record(audit)
    assert record["conformsTo"] == [exports.CROISSANT, exports.RAI]
    assert any("false-discovery rate of 0.1" in said for said in record["rai:dataAnnotationAnalysis"])
    assert audit.summary["caveats"]
    assert {*audit.summary["caveats"], *audit.summary["detection"]["warnings"]} <= set(record["rai:dataLimitations"])
    assert "license" not in record
    assert [field["name"] for field in record["recordSet"][0]["field"]] == audit.findings.column_names


def test_a_croissant_record_of_a_verified_audit_gives_the_precision(audit):
    proof = {"samples": 500, "flagged": 3, "flagged_reproduced": 2, "precision_interval": [0.094, 0.992]}
    proof |= {"reproduced_images": 5, "rows": [0, 1, 2, 3, 4]}
    verified = Audit(audit.store, audit.manifest)
    verified.__dict__["summary"] = {**audit.summary, "verification": proof}
    said = exports.croissant_record(verified)["rai:dataAnnotationAnalysis"][-1]
    assert said == (
        "500 samples of the model reproduce 5 images, 2 of them among the 3 flagged ones (95% interval of the share of "
        "flags 0.094 to 0.992)."
    )
