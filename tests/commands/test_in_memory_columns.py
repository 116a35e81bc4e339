"""Columns and conditions of images that are objects: a name that is not there is refused, what lacks is counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline

import volgrowth as vg
from tests.commands.test_in_memory import problem
from tests.support.pipelines import build

PIXELS = np.zeros((2, 1, 8, 8), np.uint8)
MODEL = vg.GaussianDenoiser(0.0, 1.0)
"""It is refused later than the images."""


def dicts(images: np.ndarray, labels: list[int | None]) -> list[dict[str, Any]]:
    return [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]


class Given(torch.utils.data.Dataset[Any]):
    """A data set of torch with these items."""

    def __init__(self, items: list[Any]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


DICTS = dicts(PIXELS, [0, 1])
PAIRS = [(image, 1) for image in PIXELS]
NO_DICT = "and not a dict with columns; "
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a class in dicts": (
        Given(DICTS), {"class_column": "lable"},
        "images has no column 'lable' (class_column or caption_column): row 0 has image, label",
    ),
    "a caption in dicts": (Given(DICTS), {"caption_column": "txt"}, "has no column 'txt' (class_column or caption_"),
    "an id in dicts": (Given(DICTS), {"id_column": "nmae"}, "images has no column 'nmae' (id_column): row 0 has image"),
    "an embedding in dicts": (DICTS, {"embedding_column": "clip"}, "has no column 'clip' (embedding_column): row 0"),
    "a class of one dict": ([*DICTS, {"image": PIXELS[0]}], {"class_column": "label"}, "'label' (class_column or capt"),
    "a class in pairs": (
        Given(PAIRS), {"class_column": "label"},
        f"row 0 is a tuple {NO_DICT}give the conditions beside the images (conditions=",
    ),
    "an id in an array": (PIXELS, {"id_column": "name"}, f"row 0 is a ndarray {NO_DICT}leave it out"),
    "an embedding in an array": (PIXELS, {"embedding_column": "x"}, f"{NO_DICT}give the embeddings beside the images"),
    "no class": (dicts(PIXELS, [None, None]), {"class_column": "label"}, "column label holds no condition for any of"),
    "no conditions": (PIXELS, {"conditions": [None, None]}, "conditions= holds no condition for any of 2 images:"),
    "conditions of a name": ("photos", {"conditions": [1]}, "images is a name, and conditions were given: name their"),
    "conditions of no holdout": (PIXELS, {"holdout_conditions": [1]}, "holdout_conditions were given, and no holdout"),
    "conditions of a named holdout": (
        PIXELS, {"holdout": "photos", "holdout_conditions": [1]},
        "holdout is a name, and holdout_conditions were given",
    ),
    "a class of held-out images": (
        DICTS, {"holdout": PIXELS, "class_column": "label"},
        f"holdout has no column 'label' (class_column or caption_column): row 0 is a ndarray {NO_DICT}give",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_columns_and_conditions_that_are_not_there_are_refused(name: str) -> None:
    images, given, sentence = REFUSED[name]
    said = problem(lambda: vg.audit_images(MODEL, images, quiet=True, **given))
    assert sentence in said
    assert "\n" not in said
    if not {"holdout", "holdout_conditions", "embedding_column"} & given.keys():
        assert sentence in problem(lambda: vg.score_images(MODEL, images, quiet=True, **given))


@pytest.mark.parametrize("beside", [True, False])
def test_images_without_a_condition_are_counted_where_the_user_looks(beside, digits, tmp_path, capsys):
    """On the terminal, in the manifest, the summary and the page; a caveat says that the two sets differ."""
    build("dit", tmp_path / "dit")
    model = DiTPipeline.from_pretrained(tmp_path / "dit", use_safetensors=True)
    classes = [None if row % 2 else row % 10 for row in range(12)]
    held: list[int | None] = [row % 10 for row in range(60)]
    images, holdout = (np.repeat(each, 3, 1) for each in (digits[:12], digits[100:160]))
    if beside:
        audit = vg.audit_images(model, images, holdout, conditions=classes, holdout_conditions=held)
    else:
        audit = vg.audit_images(model, dicts(images, classes), dicts(holdout, held), class_column="label")
    printed = " ".join(capsys.readouterr().out.split())
    why = "these images are rows without a condition, and are measured without one if the model can be"
    left_aside = f"6 missing conditions ({why})"
    assert f"left aside: {left_aside}" in printed
    assert printed.count("missing condition") == 1
    assert audit.scores["class"].to_pylist() == [None if each is None else str(each) for each in classes]
    assert audit.frozen.data.opened is not None
    assert [str(each) for each in audit.frozen.data.opened.left_aside] == [left_aside]
    column = "condition" if beside else "label"
    counted = {"audited": {"rows": 12, "without": 6}, "held_out": {"rows": 60, "without": 0}}
    assert audit.summary["conditions"] == {"kind": "class", "column": column, **counted}
    warning = f"6 of 12 scored rows have no class in column {column}: they were measured without one."
    assert warning in audit.summary["detection"]["warnings"]
    differ = f"Of the scored rows 50% have no class in column {column}, and of the held-out ones 0%"
    assert any(said.startswith(differ) for said in audit.summary["caveats"])
    page = Path(audit.store.path("report.html")).read_text()
    assert left_aside in page
    assert warning in page
