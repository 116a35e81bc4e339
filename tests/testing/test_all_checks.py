"""check_denoiser passes what is sound, and names what is broken: each fault is put into a denoiser that is exact."""

import importlib
import re
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.checkpoints import unet
from tests.support.faulty import FAULTS, SHAPE, VARIANCE, Exact, image
from volgrowth.models import NetworkDenoiser, load_model
from volgrowth.models.conditioning import ClassConditioner
from volgrowth.models.parameterizations import Scheduled
from volgrowth.numerics import (
    DDPMSchedule,
    Denoiser,
    EmpiricalDenoiser,
    GaussianDenoiser,
    LinearDenoiser,
    VPSchedule,
)
from volgrowth.numerics.denoisers import Condition
from volgrowth.testing import DenoiserReport, check_denoiser
from volgrowth.testing.all_checks import CHECKS


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGES = VARIANCE**0.5 * randn(6, *SHAPE)


def statuses(report: DenoiserReport) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def line(report: DenoiserReport, name: str) -> str:
    return next(str(check) for check in report.checks if check.name == name)


# what is sound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exact_denoiser_passes_every_check(dtype: torch.dtype) -> None:
    denoiser = Exact()
    denoiser.dtype = dtype
    report = check_denoiser(denoiser, images=IMAGES)
    assert set(statuses(report).values()) == {"ok"}, report
    assert list(statuses(report)) == list(CHECKS)
    assert str(report).endswith("\nfit for an audit")


POINTS = randn(8, *SHAPE, seed=3).tanh()
ANALYTIC: dict[str, tuple[Denoiser, dict[str, Any]]] = {
    "gaussian": (GaussianDenoiser(0.1, 0.5), {"image_shape": SHAPE}),
    "empirical": (EmpiricalDenoiser(POINTS), {}),
    "empirical, at its points": (EmpiricalDenoiser(POINTS), {"images": POINTS}),
    "linear": (LinearDenoiser(POINTS), {"image_shape": SHAPE}),
    "linear, at its data": (LinearDenoiser(POINTS), {"images": POINTS}),
    "vectors": (GaussianDenoiser(0.0, randn(5).exp()), {"image_shape": (5,)}),
}


@pytest.mark.parametrize("name", ANALYTIC)
def test_analytic_denoisers_pass(name: str) -> None:
    denoiser, options = ANALYTIC[name]
    report = check_denoiser(denoiser, **options)
    assert report.ok, report
    familiar = "images" in options
    assert set(report.named("WARN")) <= ({"sampling"} if familiar else {"denoising", "sampling"}), report


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_network_with_random_weights_is_sound_and_untrained(tiny_model: Path, dtype: Any) -> None:
    report = check_denoiser(load_model(str(tiny_model), dtype=dtype))
    assert report.ok, report
    assert "denoising" in report.named("WARN")
    assert "expected below 1" in line(report, "denoising")


def test_states_may_be_latents() -> None:
    class Latent(Exact):
        pixel_shape = (3, 16, 16)

        def embed(self, images: Tensor) -> Tensor:
            return torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 2)

        def render(self, states: Tensor) -> Tensor:
            return torch.nn.functional.interpolate(states, scale_factor=2).expand(-1, 3, -1, -1)

    report = check_denoiser(Latent())
    assert report.ok, report
    assert "(1, 8, 8)" in line(report, "states")

    class Unembedded(Latent):
        def embed(self, images: Tensor) -> Tensor:
            return images

    assert line(check_denoiser(Unembedded()), "states").startswith("FAIL  states        states have shape (3, 16, 16)")


# what is not


@pytest.mark.parametrize(("ends", "fault"), [(ends, fault) for ends, faults in FAULTS.items() for fault in faults])
def test_a_fault_is_named(ends: str, fault: str) -> None:
    denoiser, said = FAULTS[ends][fault]
    status, name = ends.split(maxsplit=1)
    report = check_denoiser(denoiser, images=IMAGES)
    assert statuses(report)[name] == status, report
    assert said in line(report, name)
    assert report.ok == (status == "WARN"), report
    assert name in str(report).splitlines()[-1]


def test_a_network_asked_with_the_label_of_another_level_is_named() -> None:
    """On images of little contrast, whose expected noise depends on the level."""
    schedule, variance = VPSchedule(), 0.04

    def network(x: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = (per_time.reshape(-1, 1, 1, 1) for per_time in schedule(time))
        return sigma / (alpha**2 * variance + sigma**2) * x

    def denoiser(label: Callable[[Tensor], Tensor]) -> Denoiser:
        return NetworkDenoiser(network, Scheduled(schedule, "epsilon", (0.01, 80.0), label), SHAPE)

    images = (variance / VARIANCE) ** 0.5 * IMAGES
    assert statuses(check_denoiser(denoiser(lambda time: time), images=images))["orthogonal"] == "ok"
    wrong = check_denoiser(denoiser(lambda time: schedule.time(schedule.noise_level(time) / 4)), images=images)
    assert "its label stands for 0.25 times the noise level that there is" in line(wrong, "orthogonal")
    assert not wrong.ok


def test_without_images_a_wrong_level_stays_hidden_and_the_report_says_so() -> None:
    report = check_denoiser(FAULTS["FAIL orthogonal"]["half the level"][0])
    assert report.ok
    assert report.named("WARN") == []
    assert line(report, "orthogonal").startswith("skip  orthogonal    whether output, noise levels and range of")


# conditions


class Conditional(Exact):
    """Class k is N(k / 2, VARIANCE), no class N(0, VARIANCE)."""

    condition = "class"
    values: Sequence[Condition] = (None,)

    def given(self, values: Sequence[Condition]) -> Denoiser:
        bound = copy(self)
        bound.values = values
        return bound

    def problem(self, value: Condition) -> str | None:
        return None if value in (0, 1, 2, None) else f"class {value!r} is unknown: expected 0 to 2"

    def means(self, y: Tensor) -> Tensor:
        means = torch.tensor([(value or 0) / 2 for value in self.values]).to(y)  # type: ignore[operator]
        return means.repeat_interleave(len(y) // len(means)).reshape(-1, 1, 1, 1)

    def __call__(self, y: Tensor, noise_level: Tensor) -> Tensor:
        mean = self.means(y)
        return mean + super().__call__(y - mean, noise_level)


class Bound(Conditional):
    def given(self, values: Sequence[Condition]) -> Denoiser:
        self.values = values
        return self


class OnePointEach(Conditional):
    def means(self, y: Tensor) -> Tensor:
        return super().means(y[: len(self.values)])[torch.arange(len(y)) % len(self.values)]


class Mixed(Conditional):
    def means(self, y: Tensor) -> Tensor:
        return super().means(y).mean(0).expand(len(y), 1, 1, 1)


class Ignored(Conditional):
    def means(self, y: Tensor) -> Tensor:
        return 0 * super().means(y)


def test_conditions_pass_where_they_are_right() -> None:
    shown = IMAGES + torch.tensor([0.5, 1.0]).repeat(3).reshape(-1, 1, 1, 1)
    report = check_denoiser(Conditional(), conditions=[1, 2], images=shown)
    assert report.ok, report
    assert line(report, "conditions").startswith("ok    conditions    noise changes by")
    assert statuses(check_denoiser(Conditional(), images=IMAGES))["conditions"] == "skip"


@pytest.mark.parametrize(
    ("kind", "name", "status", "said"),
    [
        (Bound, "conditions", "FAIL", "copy.copy(self)"),
        (OnePointEach, "conditions", "FAIL", "repeat_interleave conditions to len(y)"),
        (Mixed, "batch", "FAIL", "differs by"),
        (Ignored, "conditions", "WARN", "the condition does not reach the network"),
    ],
)
def test_a_fault_of_conditions_is_named(kind: type[Denoiser], name: str, status: str, said: str) -> None:
    report = check_denoiser(kind(), conditions=[1, 2, None], images=IMAGES)
    assert statuses(report)[name] == status, report
    assert said in line(report, name)


def test_conditions_that_a_model_does_not_take() -> None:
    assert "class 7 is unknown" in line(check_denoiser(Conditional(), conditions=[1, 7], images=IMAGES), "conditions")
    assert "takes no conditions" in line(check_denoiser(Exact(), conditions=[1]), "shape")


@pytest.mark.parametrize("null", [3, None])
def test_a_network_with_classes_is_sound(null: int | None) -> None:
    class Classes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = unet(num_class_embeds=4).eval().requires_grad_(False)

        def forward(self, x: Tensor, time: Tensor, class_labels: Tensor) -> Tensor:
            return self.unet(x, time, class_labels).sample

    table = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    denoiser = NetworkDenoiser(
        Classes(),
        Scheduled(DDPMSchedule(table), "epsilon", (0.01, 150.0)),
        SHAPE,
        conditioner=ClassConditioner(4, null, torch.device("cpu")),
    )
    report = check_denoiser(denoiser, conditions=[0, 1, 2])
    assert report.ok, report
    assert statuses(report)["conditions"] == "ok"
    if null is None:
        with pytest.raises(ValueError, match="always needs a class: expected some as conditions="):
            check_denoiser(denoiser)


# what is asked of the caller, and what is told


def test_what_cannot_be_tried() -> None:
    with pytest.raises(ValueError, match=r"no image_shape: expected one, or the argument image_shape="):
        check_denoiser(GaussianDenoiser(0.0, 1.0))
    with pytest.raises(ValueError, match="1 images: expected two or more"):
        check_denoiser(Exact(), images=IMAGES[:1])


def test_the_verdict_is_a_line_a_check_and_one_for_all() -> None:
    report = check_denoiser(FAULTS["FAIL meaning"]["sign"][0], images=IMAGES)
    *lines, last = str(report).splitlines()
    assert [text.split()[0] for text in lines] == [check.status for check in report.checks]
    assert last.startswith("not fit for an audit: meaning, orthogonal; look at ")
    assert all(": " in check.mend or check.mend == "" or check.status == "skip" for check in report.checks)


def test_nothing_is_left_behind() -> None:
    """No gradients on weights, no draws from the global generator, images as they were."""
    own, before = torch.nn.Parameter(torch.ones(())), IMAGES.clone()
    state = torch.get_rng_state()
    check_denoiser(image(lambda d, y, s: d * own), images=IMAGES)
    assert own.grad is None
    assert torch.get_rng_state().equal(state)
    assert IMAGES.equal(before)


def test_it_costs_about_as_much_as_it_says() -> None:
    evaluated = []

    class Counted(Exact):
        def __call__(self, y: Tensor, noise_level: Tensor) -> Tensor:
            evaluated.append(len(y))
            return super().__call__(y, noise_level)

    check_denoiser(Counted(), images=IMAGES[:4])
    assert 130 <= sum(evaluated) / 4 <= 170


# the page


PAGE = Path(__file__).parents[2] / "docs/factory.md"


@pytest.fixture
def trained(digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Tensor]:
    """The page's module, its network after some steps of the page's loss, and images that it has seen."""
    source = re.search(r"^```python\n(# cosine_model\.py\n.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert source
    monkeypatch.chdir(tmp_path)
    code = source[1].replace("    # network.load_state_dict", "    network.load_state_dict")
    assert code != source[1]
    (tmp_path / "trained_cosine.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("trained_cosine")
    images = torch.from_numpy(digits[:32]).repeat(1, 3, 4, 4) / 127.5 - 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = module.Network()
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for _ in range(40):
            optimizer.zero_grad()
            module.loss(network, images[torch.randint(32, (8,))]).backward()
            optimizer.step()
    torch.save(network.state_dict(), "cosine-40000.pt")
    return module, images[:4]


def test_the_model_of_the_page_prints_the_verdict_of_the_page(trained: tuple[Any, Tensor]) -> None:
    module, images = trained
    model = load_model("factory:trained_cosine:load")
    report = check_denoiser(model, images=images)
    shown = re.findall(r"^(ok|WARN|FAIL|skip)  +(\w[\w ]*?)  ", PAGE.read_text(), re.MULTILINE)
    assert [(check.status, check.name) for check in report.checks] == shown, report
    assert f"\n{str(report).splitlines()[-1]}\n```\n" in PAGE.read_text()

    assert isinstance(model, NetworkDenoiser)
    model.parameterization = Scheduled(module.Cosine(), "epsilon", (0.016, 63.0))
    assert "is read as the noise (epsilon)" in line(check_denoiser(model, images=images), "orthogonal")
    model.network = module.Network().requires_grad_(False)
    assert "denoising" in check_denoiser(model, images=images).named("WARN")


def test_the_page_lists_every_check() -> None:
    rows = re.findall(r"^\| (`.*`) \| .* \|$", PAGE.read_text().partition("| check |")[2], re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`([^`]+)`", row)][: len(CHECKS)] == list(CHECKS)
