"""The training callback audits a training that goes on as if it was not there, whatever goes wrong in an audit."""

import copy
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from PIL import Image

import volgrowth as vg
from volgrowth.audit.output.hub import hub_card
from volgrowth.commands.trend import trend_audits
from volgrowth.errors import DataError, UsageError, VolgrowthError

SAMPLE, HELD_OUT, EVERY = 60, 55, 2
SCHEDULER = DDPMScheduler()
NO_FUNCTION: Any = 5


def network() -> Any:
    """One with dropout, so that it matters whether it is in training."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), dropout=0.5,
    )  # fmt: skip


def callback(digits: np.ndarray, output: Path, **settings: Any) -> vg.AuditCallback:
    given = {"rows": SAMPLE, "every": EVERY, "adapt": adapt, **settings}
    return vg.AuditCallback(digits[:200], digits[300 : 300 + HELD_OUT], output=output, **given)


def adapt(model: Any) -> Any:
    return vg.adapt(model, scheduler=SCHEDULER)


def train(digits: np.ndarray, steps: int, each: Callable[[int, Any, Any], object]) -> dict[str, torch.Tensor]:
    """Train as the examples of diffusers do, with a moving average; return all weights and what random numbers say."""
    model, images = network(), torch.from_numpy(digits[:16] / 127.5 - 1).float()
    ema = EMAModel(model.parameters(), decay=0.5, model_cls=UNet2DModel, model_config=model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for name, weight in model.named_parameters():
        weight.requires_grad_("conv_in" not in name)
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    for step in range(1, steps + 1):
        noise, times = torch.randn_like(images), torch.randint(0, 1000, (len(images),))
        predicted = model(SCHEDULER.add_noise(images, noise, times), times).sample
        torch.nn.functional.mse_loss(predicted, noise).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        each(step, model, ema)
        assert all(module.training for module in model.modules())
    numbers = [random.random(), np.random.random(), torch.rand(()).item()]
    averages = {f"ema {place}": weight for place, weight in enumerate(ema.shadow_params)}
    return {**model.state_dict(), **averages, "random": torch.tensor(numbers)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_training_is_audited_and_goes_on_as_without_that(digits, tmp_path, capsys):
    audits = callback(digits, tmp_path / "audits")
    hashes = {}

    def audited(step: int, model: Any, ema: Any) -> None:
        audit = audits.on_step(step, model, ema)
        assert (audit is None) == bool(step % EVERY)
        if audit is not None:
            average = copy.deepcopy(model)
            ema.copy_to(average.parameters())
            hashes[step] = audit.frozen.model.hash, average

    plain = train(digits, 5, lambda *at: None)
    assert same(train(digits, 5, audited), plain)
    assert list(audits.flagged) == [2, 4]
    assert audits.failed == {}
    outputs = [str(tmp_path / f"audits/step-0000000{step}") for step in (2, 4)]
    trend = trend_audits(outputs)
    assert [each.memorized for each in trend.checkpoints] == list(audits.flagged.values())
    assert all(0 < each.judged <= SAMPLE for each in trend.checkpoints)
    assert not [note for note in trend.notes if "another" in note or "one and the same model" in note]
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("opened: 60 rows of 1 parquet file") == 1
    assert "step 4: No images are flagged as memorized; report: " in printed
    assert printed.count("With 55 held-out images fewer than") == 1
    # the weights that were measured are those of the moving average
    of_average = vg.audit_images(adapt(hashes[4][1]), digits[:3], quiet=True)
    assert of_average.frozen.model.hash == hashes[4][0]
    assert of_average.frozen.model.hash != hashes[2][0]
    # a second run of the script opens the audits that are there
    again = callback(digits, tmp_path / "audits")
    train(digits, 4, again.on_step)
    assert again.flagged == audits.flagged
    with pytest.raises(DataError, match="images are others than those that"):
        callback(digits, tmp_path / "audits", seed=1)


def test_where_no_image_could_be_judged_no_number_is_told(tmp_path, digits, capsys):
    """Noise is more complex than any of the held-out digits."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    held = digits[300 : 300 + HELD_OUT]
    audits = vg.AuditCallback(noise, held, output=tmp_path / "audits", every=1, adapt=adapt, preset="screen")
    audit = audits.on_step(1, network())
    assert audit is not None, audits.failed
    assert audit.summary["detection"]["tests"] == 0
    assert audits.flagged == {1: None}
    assert "step 1: 20 images scored, and none could be judged; report: " in " ".join(capsys.readouterr().out.split())
    assert "| memorized | none of the images could be judged |" in hub_card(audit)
    assert "No image could be judged: all are simpler" in audit.store.read("report.html").decode()


@pytest.mark.parametrize("wrong", ["no scheduler", "weights", "ema", "ema of another network", "ema of a denoiser"])
def test_what_fails_in_an_audit_is_said_and_the_training_goes_on(wrong, digits, tmp_path, capsys):
    audits = callback(digits, tmp_path / "audits", **({"adapt": vg.adapt} if wrong == "no scheduler" else {}))

    def audited(step: int, model: Any, ema: Any) -> None:
        if wrong == "weights":
            model = copy.deepcopy(model)
            model.conv_out.bias.data.fill_(torch.nan)
            ema = None
        elif wrong == "ema":
            ema = [1, 2]
        elif wrong == "ema of another network":
            ema = EMAModel(list(model.parameters())[1:])
        elif wrong == "ema of a denoiser":
            model = vg.GaussianDenoiser(0.0, 1.0)
        assert audits.on_step(step, model, ema) is None

    assert same(train(digits, 3, audited), train(digits, 3, lambda *at: None))
    assert audits.flagged == {}
    said = {
        "no scheduler": "give the scheduler that added the noise",
        "weights": "holds NaN or infinity",
        "ema": "ema is a list: expected an EMAModel of diffusers",
        "ema of another network": "ema averages other weights than those of the model",
        "ema of a denoiser": "ema was given for a GaussianDenoiser: give the network",
    }[wrong]
    assert said in audits.failed[2]
    printed = " ".join(capsys.readouterr().err.split())
    assert "step 2: there is no audit, and the training goes on: " in printed
    assert said in printed
    assert "Traceback" not in printed


def test_the_samples_conditions_go_with_its_images(digits, tmp_path):
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=100,
    )  # fmt: skip
    classes = list(range(40, 100))
    audits = vg.AuditCallback(
        digits[:60], output=tmp_path / "audits", every=1, rows=20, conditions=classes, adapt=adapt, preset="screen"
    )
    ours = audits.on_step(1, model)
    assert ours is not None, audits.failed
    assert audits.flagged == {1: None}
    chosen = np.sort(np.random.default_rng(0).choice(60, 20, replace=False))
    expected = vg.score_images(
        adapt(model), digits[chosen], "screen", conditions=[classes[row] for row in chosen], quiet=True
    )
    assert ours.scores["growth"].to_pylist() == expected["growth"].to_pylist()
    assert ours.scores["growth"].null_count == 0


def test_ctrl_c_within_an_audit_leaves_the_training_its_own_weights(digits, tmp_path):
    def interrupted(model: Any) -> Any:
        assert not model.training
        raise KeyboardInterrupt

    audits = callback(digits, tmp_path / "audits", adapt=interrupted)

    def audited(step: int, model: Any, ema: Any) -> None:
        if step == EVERY:
            with pytest.raises(KeyboardInterrupt):
                audits.on_step(step, model, ema)

    assert same(train(digits, 3, audited), train(digits, 3, lambda *at: None))
    assert (audits.flagged, audits.failed) == ({}, {})


def test_columns_of_a_data_set_are_named_as_for_an_audit(digits, tmp_path):
    pictures = [Image.fromarray(image[0]) for image in digits[:40]]
    rows = {"picture": pictures, "name": [f"digit {row}" for row in range(40)]}
    data = datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())
    audits = vg.AuditCallback(
        data, output=tmp_path / "audits", every=1, rows=10, adapt=adapt, preset="screen", id_column="name"
    )
    audit = audits.on_step(1, network())
    assert audit is not None, audits.failed
    chosen = np.sort(np.random.default_rng(0).choice(40, 10, replace=False))
    assert audit.scores["image_id"].to_pylist() == [f"digit {row}" for row in chosen]


def test_another_process_of_the_training_does_nothing(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    audits = callback(digits, tmp_path / "audits")
    assert audits.on_step(2, network()) is None
    assert (audits.flagged, audits.failed) == ({}, {})
    assert not (tmp_path / "audits").exists()
    monkeypatch.setenv("RANK", "0")
    callback(digits, tmp_path / "audits")
    assert (tmp_path / "audits/images").is_dir()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no step": ({"every": 0}, "every is 0: expected a whole number from 1 on"),
    "part of a step": ({"every": 0.5}, "every is 0.5: expected a whole number"),
    "no rows": ({"rows": 0}, "rows is 0: expected a whole number"),
    "never": ({"every": None}, "every is None: expected a whole number from 1 on"),
    "a truth for a number": ({"rows": True}, "rows is True: expected a whole number from 1 on"),
    "no function": ({"adapt": 5}, "adapt is 5: expected a function"),
    "no place": ({"output": None}, "output is None: expected a folder or a URL"),
    "a number for conditions": ({"conditions": 5}, "conditions is 5: expected a class or a caption for each image"),
    "no measure": ({"measure": 5}, "measure"),
    "model": ({"model": "m"}, "setting model is not one of the callback"),
    "preset": ({"preset": "papre"}, "papre"),
    "setting": ({"sead": 1}, "sead"),
    "a name": ({"images": "train.parquet"}, "a name, of which no sample is drawn"),
    "a stream": ({"images": iter([])}, "does not say how many it has"),
    "no images": ({"images": {"a": 1}}, "images is a dict: expected a datasets.Dataset"),
    "conditions": ({"conditions": [1]}, "200 images, and 1 conditions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_before_the_training(name, digits, tmp_path):
    given, sentence = REFUSED[name]
    images = {"images": digits[:200], "output": tmp_path / "audits", "every": EVERY, "rows": SAMPLE}
    with pytest.raises(VolgrowthError) as found:
        vg.AuditCallback(**{**images, **given})
    assert sentence in str(found.value)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "audits").exists()


@pytest.mark.parametrize("step", [None, "2", 2.0, True])
def test_a_step_that_is_no_whole_number_is_refused_at_once(step, digits, tmp_path):
    audits = callback(digits, tmp_path / "audits")
    with pytest.raises(UsageError, match=r"step is .*: expected a whole number from 0 on"):
        audits.on_step(step, network())
    with pytest.raises(UsageError, match="ema is 5: expected a function"):
        audits.lightning(ema=NO_FUNCTION)


def test_whole_numbers_of_other_libraries_are_taken(digits, tmp_path):
    audits = callback(digits, tmp_path / "audits", every=np.int64(2), rows=np.int32(5), measure={"loss_level": 0.4})
    steps: list[Any] = [0, np.int64(1), torch.tensor(1), np.int64(2)]
    assert [audits.on_step(step, None) for step in steps] == [None] * 4
    assert list(audits.failed) == [2]
    assert "None was given as a model" in audits.failed[2]


def test_the_nearest_right_images_are_taken(digits, tmp_path):
    given = iter(torch.from_numpy(digits[:3]))
    vg.AuditCallback(given, output=tmp_path / "all of a stream", every=1, rows=None)
    vg.AuditCallback(digits[:3], output=tmp_path / "fewer than the sample", every=1)
    for name in ("all of a stream", "fewer than the sample"):
        assert (tmp_path / name / "images/audited/part-00000.parquet").is_file()


def test_weights_lie_where_they_lay_after_an_audit(digits):
    model = network()
    before = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    strides = {name: weight.stride() for name, weight in model.named_parameters()}
    vg.score_images(adapt(model), digits[:3], channels_last=True, quiet=True)
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == before
    assert {name: weight.stride() for name, weight in model.named_parameters()} == strides


def test_lightning_trains_on_between_its_audits(digits, tmp_path, monkeypatch, capsys):
    lightning: Any = pytest.importorskip("lightning.pytorch", exc_type=ImportError)

    class Training(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()
            self.average = torch.optim.swa_utils.AveragedModel(self.network)

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            noise, times = torch.randn_like(batch[0]), torch.randint(0, 1000, (len(batch[0]),))
            predicted = self.network(SCHEDULER.add_noise(batch[0], noise, times), times).sample
            return torch.nn.functional.mse_loss(predicted, noise)

        def optimizer_step(self, *given: Any, **more: Any) -> None:
            super().optimizer_step(*given, **more)
            self.average.update_parameters(self.network)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.network.parameters(), lr=1e-2)

    def fitted(*callbacks: Any) -> dict[str, torch.Tensor]:
        lightning.seed_everything(0, verbose=False)
        module = Training()
        images = torch.utils.data.TensorDataset(torch.from_numpy(digits[:32] / 127.5 - 1).float())
        trainer = lightning.Trainer(
            max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accumulate_grad_batches=2, callbacks=list(callbacks),
            default_root_dir=tmp_path / "lightning",
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(images, batch_size=4, shuffle=True))
        assert module.network.training
        return module.state_dict()

    plain = fitted()
    audits = callback(digits, tmp_path / "audits")
    given = audits.lightning(lambda module: module.network, ema=lambda module: module.average)
    assert same(fitted(given), plain)
    assert list(audits.flagged) == [2]
    assert audits.failed == {}
    wrong = callback(digits, tmp_path / "wrong")
    assert same(fitted(wrong.lightning(lambda module: module.missing)), plain)
    assert "has no attribute 'missing'" in wrong.failed[2]
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="PyTorch Lightning is not installed: pip install lightning"):
        audits.lightning()
