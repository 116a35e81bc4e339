"""Audits of what a program holds are those of the command, whatever holds the images; nothing is guessed in silence."""

import gc
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

import volgrowth as vg
from tests.conftest import volgrowth
from volgrowth.config import AuditConfig
from volgrowth.demo.cases import write_image_parquet
from volgrowth.errors import VolgrowthError
from volgrowth.sources import decode_image
from volgrowth.sources.given.containers import GivenImages
from volgrowth.sources.given.encoding import checked_range

ROWS = 12
SAME = ("growth", "loss", "noise_norm", "phash", "content_hash", "png_bytes", "status", "nfe")


def problem(call: Callable[[], Any]) -> str:
    with pytest.raises(VolgrowthError) as found:
        call()
    return str(found.value)


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Any:
    return DDPMPipeline.from_pretrained(tiny_model, use_safetensors=True)


@pytest.fixture(scope="module")
def pixels(digits: np.ndarray) -> np.ndarray:
    return digits[:ROWS]


@pytest.fixture(scope="module")
def expected(tiny_model: Path, digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> vg.Audit:
    """What the command measures of the model's folder and a file of the images."""
    folder = tmp_path_factory.mktemp("command")
    write_image_parquet(folder / "images.parquet", digits[:ROWS], list(map(str, range(ROWS))))
    config = AuditConfig.build(
        model=str(tiny_model), data=str(folder / "images.parquet"), output=str(folder / "out"), engine="local"
    )
    return vg.run_audit(config, quiet=True)


class Labelled(torch.utils.data.Dataset[Any]):
    """As torchvision's data sets: a tensor in [0, 1] and a label; it knows numbers and its length alone."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index >= len(self):
            raise KeyError(index)
        return torch.from_numpy(self.pixels[index]) / 255, index % 10


def stored(pixels: np.ndarray) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"picture": pillow(pixels), "label": list(range(len(pixels)))}).cast_column(
        "picture", datasets.Image()
    )


def pillow(pixels: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(image[0]) for image in pixels]


def signed(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels / 127.5 - 1).float()


GIVEN: dict[str, tuple[Callable[[np.ndarray], Any], dict[str, Any]]] = {
    "array": (lambda p: p, {}),
    "channels last": (lambda p: np.moveaxis(p, 1, -1), {}),
    "no channels": (lambda p: p[:, 0], {}),
    "uint8 tensor": (torch.from_numpy, {}),
    "signed tensor": (signed, {"value_range": (-1, 1)}),
    "half tensor": (lambda p: signed(p).half(), {"value_range": (-1, 1)}),
    "bfloat16 in [0, 255]": (lambda p: torch.from_numpy(p).bfloat16(), {"value_range": (0, 255)}),
    "float64 array": (lambda p: p / 255, {"value_range": (0, 1)}),
    "list of PIL": (pillow, {}),
    "PIL in RGB": (lambda p: [image.convert("RGB") for image in pillow(p)], {}),
    "list of tensors": (lambda p: list(signed(p)), {"value_range": (-1, 1)}),
    "iterator": (lambda p: iter(pillow(p)), {}),
    "torch Dataset": (Labelled, {"value_range": (0, 1)}),
    "datasets": (stored, {}),
    "datasets, transformed": (lambda p: stored(p).with_transform(lambda rows: rows), {}),
    "streamed datasets": (lambda p: stored(p).to_iterable_dataset(), {}),
    "datasets of arrays": (
        lambda p: datasets.Dataset.from_dict({"x": signed(p).tolist()}).with_format("torch"),
        {"value_range": (-1, 1), "image_column": "x"},
    ),
    "subset": (lambda p: torch.utils.data.Subset(Labelled(p), range(len(p))), {"value_range": (0, 1)}),
}


@pytest.mark.parametrize("name", GIVEN)
def test_the_same_pixels_whatever_holds_them(name, pixels):
    make, options = GIVEN[name]
    limits, column = checked_range(options.get("value_range")), options.get("image_column")
    rows = list(GivenImages(make(pixels), "images", limits, image_column=column).rows())
    assert np.array_equal([decode_image(row.image or b"", (1, 8, 8), 10**6) for row in rows], pixels)


@pytest.mark.parametrize("name", ["signed tensor", "torch Dataset", "datasets"])
def test_the_same_scores_as_of_the_command(name, pipeline, pixels, expected):
    make, options = GIVEN[name]
    table = vg.score_images(pipeline, make(pixels), quiet=True, **options)
    for column in SAME:
        assert table[column].to_pylist() == expected.scores[column].to_pylist(), column


def test_an_audit_is_that_of_the_command(tiny_model, pipeline, digits, tmp_path, capsys):
    """With held-out images, a report, and what follows; and its temporary folder goes with it."""
    heard: list[tuple[int, int]] = []
    audit = vg.audit_images(pipeline, digits[:60], pillow(digits[300:380]), progress=lambda *at: heard.append(at))
    assert heard == [(60, 140), (140, 140)]
    assert "no output was given: the audit goes with the object that is returned" in capsys.readouterr().out
    for name, rows in (("images", digits[:60]), ("holdout", digits[300:380])):
        write_image_parquet(tmp_path / f"{name}.parquet", rows, list(map(str, range(len(rows)))))
    given = {"model": str(tiny_model), "output": str(tmp_path / "out"), "engine": "local"}
    data, held_out = str(tmp_path / "images.parquet"), str(tmp_path / "holdout.parquet")
    command = vg.run_audit(AuditConfig.build(**given, data=data, holdout=held_out), quiet=True)
    for column in ("row", "growth", "expected_growth", "evidence", "p_value", "q_value", "memorized", "cluster"):
        assert audit.findings[column].to_pylist() == command.findings[column].to_pylist(), column
    assert vg.verify_audit(audit.store.url, 2, engine="local", quiet=True).findings["verified_hits"].null_count == 0
    folder = Path(audit.store.url)
    assert (folder / "report.html").is_file()
    del audit
    gc.collect()
    assert not folder.exists()


def test_with_an_output_the_same_call_resumes_and_other_images_are_refused(pipeline, digits, tmp_path, capsys):
    out, more = tmp_path / "out", tmp_path / "more"
    first = vg.audit_images(pipeline, digits[:ROWS], output=out, quiet=True)
    written = sorted(path.stat().st_mtime_ns for path in out.glob("images/*/*"))
    again = vg.audit_images(pipeline, pillow(digits[:ROWS]), output=str(out))
    assert "nothing was measured" in capsys.readouterr().out
    assert again.summary == first.summary
    for images in (digits[1 : ROWS + 1], digits[: ROWS + 1], digits[: ROWS - 1]):
        assert "images are others than those that" in problem(partial(vg.audit_images, pipeline, images, output=out))
    assert sorted(path.stat().st_mtime_ns for path in out.glob("images/*/*")) == written
    other = DDPMPipeline(UNet2DModel.from_config(pipeline.unet.config), pipeline.scheduler)
    assert "holds another audit" in problem(lambda: vg.audit_images(other, digits[:ROWS], output=out))
    assert vg.audit_images(other, digits[:ROWS], output=more, quiet=True).findings.num_rows == ROWS


def test_another_process_is_told_how_to_bring_the_model(pipeline, digits, tmp_path):
    out = tmp_path / "out"
    vg.audit_images(pipeline, digits[:ROWS], output=out, quiet=True)
    ran = volgrowth("verify", out, "--samples", 2, "--engine", "local")
    assert ran.returncode == 2
    assert "was an object in the process that audited it" in ran.stderr
    assert "vg.audit_images with the same model, images and output first" in " ".join(ran.stderr.split())
    assert "Traceback" not in ran.stderr


def test_what_is_left_aside_or_rounded_is_said_and_recorded(pipeline, digits, capsys):
    images = signed(digits[:ROWS]) * 0.999
    pairs = [(image, 3) for image in images]
    audit = vg.audit_images(pipeline, pairs, value_range=(-1, 1))
    printed = " ".join(capsys.readouterr().out.split())
    said = f"{ROWS} further values (what a data set gives beside an image is taken by conditions= alone, such as 3)"
    assert said in printed
    assert "fractional pixel values (images are written in 8 bits, and these were rounded" in printed
    assert audit.frozen.data.opened is not None
    assert [each.kind for each in audit.frozen.data.opened.left_aside] == ["further value", "fractional pixel value"]
    transformed = GivenImages(stored(digits[:ROWS]).with_transform(lambda rows: rows))
    assert len(list(transformed.rows())) == ROWS
    assert str(transformed.left_aside[0]).startswith("1 transform (the images are audited as they are stored")
    plain = GivenImages(digits[:ROWS])
    assert len(list(plain.rows())) == ROWS
    assert plain.left_aside == []


def wrong(images: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    return images, options


FLOATS = np.zeros((2, 1, 8, 8), np.float32)
REFUSED = {
    "no range": (*wrong(FLOATS - 0.5), "from -0.5 to -0.5, and nothing says what black and white are"),
    "another range": (*wrong(FLOATS - 0.5, value_range=(0, 1)), "holds -0.5 to -0.5, and value_range is (0, 1)"),
    "no numbers": (*wrong(FLOATS + np.nan, value_range=(0, 1)), "holds NaN or infinity"),
    "range of bytes": (*wrong(np.zeros((2, 1, 8, 8), np.uint8), value_range=(0, 1)), "is of type uint8"),
    "range upside down": (*wrong(FLOATS, value_range=(1, 0)), "value_range (1, 0): expected the numbers of black"),
    "whole numbers": (*wrong(np.zeros((2, 1, 8, 8), np.int64)), "is of type int64: expected uint8"),
    "one image": (*wrong(np.zeros((8, 8, 3), np.uint8)), "one image is images[None]"),
    "one PIL image": (*wrong(Image.new("L", (8, 8))), "images is one image: expected a datasets.Dataset"),
    "four channels": (*wrong(np.zeros((2, 4, 8, 8), np.uint8)), "is of shape (4, 8, 8): expected (channels"),
    "either way": (*wrong(np.zeros((2, 3, 8, 3), np.uint8)), "is of shape (3, 8, 3): expected (channels"),
    "names": (*wrong(["a.png"]), "image 0 is a str: expected a PIL image"),
    "PIL of floats": (*wrong([Image.new("F", (8, 8))]), "PIL image of mode F, whose range nothing tells"),
    "nothing": (*wrong([]), "images is empty"),
    "None": (*wrong(None), "images is None: expected a datasets.Dataset"),
    "a number": (*wrong(7), "images is an int: expected a datasets.Dataset"),
    "a dict": (*wrong({"image": FLOATS}), "images is a dict: expected a datasets.Dataset"),
    "splits": (*wrong(datasets.DatasetDict({"train": datasets.Dataset.from_dict({"a": [1]})})), "the splits train"),
    "a loader": (*wrong(torch.utils.data.DataLoader(Labelled(FLOATS))), "give its data set, loader.dataset"),
    "no images": (*wrong(datasets.Dataset.from_dict({"text": ["a"]})), "has no column of images, but text"),
    "no column": (*wrong(stored(np.zeros((2, 1, 8, 8), np.uint8)), image_column="x"), "has no column 'x'"),
    "too few conditions": (*wrong(np.zeros((2, 1, 8, 8), np.uint8), conditions=[1]), "2 images, and 1 conditions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_set_of_images_is_refused_in_a_sentence(name):
    images, options, sentence = REFUSED[name]
    model = vg.GaussianDenoiser(0.0, 1.0)  # refused later than the images
    said = problem(lambda: vg.score_images(model, images, quiet=True, **options))
    assert sentence in said
    assert "\n" not in said


OF_AUDITS: dict[str, Any] = {
    "holdout": FLOATS, "holdout_conditions": [1, 2], "embeddings": "nonsense", "embedding_column": "clip",
    "reference": "out", "output": "out",
}  # fmt: skip


@pytest.mark.parametrize("name", OF_AUDITS)
def test_scores_alone_take_nothing_that_would_change_nothing(name, pipeline, pixels):
    said = problem(lambda: vg.score_images(pipeline, pixels, quiet=True, **{name: OF_AUDITS[name]}))
    assert said.startswith("score_images measures images, compares none and keeps nothing, so that ")
    assert f" {name} would change nothing: leave it out, or use audit_images" in said
    assert "cascade does not" in problem(lambda: vg.score_images(pipeline, pixels, quiet=True, cascade=True))
    nothing: dict[str, Any] = {name: None}
    assert vg.score_images(pipeline, pixels[:2], quiet=True, **nothing).num_rows == 2


def test_models_that_are_none_are_refused_in_a_sentence(pixels):
    for model, sentence in (
        (torch.nn.Linear(2, 2), "nothing tells what its output means: use vg.velocity"),
        (7, "an int was given as a model: expected a volgrowth.Denoiser"),
        (UNet2DModel, "the class UNet2DModel was given as a model"),
        (vg.GaussianDenoiser(0.0, 1.0), "this is a denoiser of images of shape None"),
    ):
        assert sentence in problem(partial(vg.score_images, model, pixels, quiet=True))


def test_held_out_images_that_are_the_audited_ones_are_refused(pipeline, digits):
    said = problem(lambda: vg.audit_images(pipeline, digits[:60], pillow(digits[:60]), quiet=True))
    assert "holdout holds the same images as images" in said


def test_a_network_in_training_is_measured_at_rest_and_goes_on_training(pipeline, pixels, expected):
    network = UNet2DModel.from_config({**pipeline.unet.config, "dropout": 0.5})
    network.load_state_dict(pipeline.unet.state_dict())
    network.train()
    network.conv_in.requires_grad_(False)
    model = DDPMPipeline(network, pipeline.scheduler)
    table = vg.score_images(model, pixels, quiet=True)
    assert table["growth"].to_pylist() == expected.scores["growth"].to_pylist()
    assert all(module.training for module in network.modules())
    asked = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    assert asked == {"conv_in.weight", "conv_in.bias"}


def test_a_callback_may_end_it_and_what_cannot_be_resumed_is_said(pipeline, pixels, capsys):
    def stop(done: int, rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vg.score_images(pipeline, pixels, progress=stop)
    said = capsys.readouterr().err
    assert "without an output nothing of this audit is kept; give output=FOLDER" in " ".join(said.split())


def test_classes_come_beside_images_or_from_a_column(pixels):
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=ROWS,
    )  # fmt: skip
    model = vg.adapt(network, scheduler=DDPMScheduler())
    classes = list(range(ROWS))
    beside = vg.score_images(model, pixels, conditions=classes, quiet=True)
    column = vg.score_images(model, stored(pixels), class_column="label", quiet=True)
    assert beside["growth"].to_pylist() == column["growth"].to_pylist()
    assert set(beside["status"].to_pylist()) == {"ok"}
    assert beside["class"].to_pylist() == column["class"].to_pylist() == [str(each) for each in classes]
    said = problem(lambda: vg.score_images(model, pixels, quiet=True))
    assert "cannot be evaluated without a class" in said


def test_a_row_without_an_image_keeps_its_place(pipeline, pixels):
    table = datasets.Dataset.from_dict({"image": [pillow(pixels)[0], None, pillow(pixels)[1]]})
    status = vg.score_images(pipeline, table.cast_column("image", datasets.Image()), quiet=True)["status"]
    assert status.to_pylist() == ["ok", "undecodable", "ok"]


def test_settings_take_their_model_along(pipeline):
    from volgrowth.models.objects.held_models import hold_model

    denoiser = vg.GaussianDenoiser(0.0, 0.5)
    denoiser.image_shape = (1, 8, 8)
    config = AuditConfig.build(model=hold_model(denoiser), data="data", output="out")
    sent = pickle.dumps(config)
    name = config.model
    del denoiser, config
    gc.collect()
    assert "was an object in the process" in problem(lambda: vg.load_model(name))
    other = pickle.loads(sent)
    assert vg.load_model(name).image_shape == (1, 8, 8)
    assert other.model == name


@pytest.mark.ray
def test_ray_measures_the_same(ray_session, pipeline, pixels, expected):
    table = vg.score_images(pipeline, pixels, engine="ray", quiet=True)
    assert table["growth"].to_pylist() == expected.scores["growth"].to_pylist()


def test_images_lie_in_the_output_as_files_that_other_tools_read(pipeline, pixels, tmp_path):
    vg.audit_images(pipeline, pixels, output=tmp_path / "out", quiet=True)
    [file] = (tmp_path / "out/images/audited").iterdir()
    assert pq.read_table(file).num_rows == ROWS
    assert vg.open_audit(str(tmp_path / "out")).flagged().num_rows == 0


VECTORS = np.eye(ROWS)[[0, 1, 2, 0, 4, 5, 6, 7, 8, 9, 10, 11]]  # images 0 and 3 are alike by them


@pytest.mark.parametrize("held", ["array", "tensor", "column", "arrays in a column"])
def test_embeddings_of_images_that_are_objects_join_near_duplicates(held, pipeline, pixels):
    images: Any = pixels
    given: dict[str, Any] = {"embeddings": torch.from_numpy(VECTORS) if held == "tensor" else VECTORS}
    if held.endswith("column"):
        images, given = stored(pixels).add_column("clip", VECTORS.tolist()), {"embedding_column": "clip"}
    if held == "arrays in a column":
        images = [{"image": image, "clip": vector} for image, vector in zip(pillow(pixels), VECTORS, strict=True)]
        given["image_column"] = "image"
    audit = vg.audit_images(pipeline, images, quiet=True, **given)
    cluster = audit.findings["cluster"].to_pylist()
    assert cluster[3] == cluster[0]
    assert audit.summary["duplicates"]["embeddings"]["rows"] == ROWS


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"embeddings": VECTORS[:5]}, "12 images, and 5 embeddings: expected as many"),
        ({"embeddings": VECTORS[0]}, r"embeddings is of shape \(12,\): expected an array or tensor of shape"),
        ({"embeddings": "clip"}, "embeddings is a str: expected an array or tensor"),
        ({"embeddings": VECTORS, "embedding_column": "clip"}, "embeddings and the column clip were both given"),
        ({"embeddings": np.full_like(VECTORS, np.nan)}, "a value that is no finite number"),
    ],
)
def test_embeddings_that_are_none_are_refused(given, said, pipeline, pixels):
    with pytest.raises(VolgrowthError, match=said):
        vg.audit_images(pipeline, pixels, quiet=True, **given)
    assert "name their column" in problem(lambda: vg.audit_images(pipeline, "photos", embeddings=VECTORS, quiet=True))
