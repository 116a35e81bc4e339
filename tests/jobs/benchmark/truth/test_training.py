"""Training as users do it: what is saved loads as any other model, and is what was trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jobs.benchmark.detection.suite import Setup, Trained
from jobs.benchmark.truth.training import (
    Autoencoder,
    Practice,
    augmented_forms,
    encode_images,
    mirror_and_move,
    target_of,
    train_as_users_do,
    train_autoencoder,
)
from volgrowth.demo.cases import digit_images
from volgrowth.demo.training import Recipe, train_model
from volgrowth.models import load_model

TINY = Recipe(channels=(8, 8), steps=3, batch=4)
SMALL = Autoencoder((8, 8), recipe=Recipe(steps=3, batch=4))


def test_a_model_of_latents_loads_and_its_latents_have_unit_variance(tmp_path):
    setup = Setup("tiny", None, 40, ((2, 5),), TINY, plain=4, held_out=20, latent=SMALL)
    case = setup.case(tmp_path, 1)
    setup.train(case.train, tmp_path / "model", 1)
    model = load_model(str(tmp_path / "model"))
    assert (model.pixel_shape, model.image_shape) == ((1, 8, 8), (4, 4, 4))
    torch.manual_seed(0)
    assert encode_images(train_autoencoder(case.train, SMALL), case.train).std() == pytest.approx(1, abs=1e-3)


def test_without_any_practice_the_loss_is_that_of_the_demo(tmp_path):
    images = digit_images()[:20]
    train_model(images, tmp_path / "demo", 1, TINY)
    train_as_users_do(images, tmp_path / "users", 1, TINY, Practice())
    files = [(tmp_path / each / "unet/diffusion_pytorch_model.safetensors").read_bytes() for each in ("demo", "users")]
    assert files[0] == files[1]
    for practice in (Practice(augmented=True), Practice(average=0.9)):
        train_as_users_do(images, tmp_path / "other", 1, TINY, practice)
        assert (tmp_path / "other/unet/diffusion_pytorch_model.safetensors").read_bytes() != files[0]


def test_augmented_images_are_mirrored_or_not_and_moved_by_up_to_a_pixel():
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    inner = {tuple(each[2:6, 2:6].flatten().tolist()) for each in mirror_and_move(image.expand(200, 1, 8, 8))[:, 0]}
    moved = [
        form[0, 0, top : top + 4, left : left + 4].flatten().tolist()
        for form in (image, image.flip(3))
        for top in (1, 2, 3)
        for left in (1, 2, 3)
    ]
    assert inner == set(map(tuple, moved))
    assert np.isin(mirror_and_move(image).numpy(), image.numpy()).all()


def test_a_family_of_augmented_training_is_hit_in_every_form_that_the_model_was_shown(tmp_path):
    images = digit_images()[:6]
    forms = augmented_forms(images)
    torch.manual_seed(0)
    made = mirror_and_move(torch.from_numpy(images).repeat(300, 1, 1, 1)).numpy()
    for row in range(6):
        known = {form.tobytes() for form in forms[row::6]}
        assert {image.tobytes() for image in made[row::6]} == known
    setup = Setup("tiny", None, 200, ((2, 5),), TINY, plain=4, held_out=200)
    case = setup.case(tmp_path, 1)
    moved = np.repeat(augmented_forms(case.train[case.first[:1]])[[17]], 40, 0)  # mirrored, and moved by a pixel
    for practice, hits in ((Practice(), 0), (Practice(augmented=True), 40)):
        found = Trained(replace(setup, practice=practice), 1, case, tmp_path, moved).truth()
        assert (found.hits[0], len(found.hits), len(found.holdout_hits)) == (hits, len(case.names), len(case.holdout))


def test_a_network_of_velocities_is_trained_on_them_and_says_so_in_its_pipeline(tmp_path):
    setup = Setup("tiny", None, 40, ((2, 5),), TINY, plain=4, held_out=20, prediction="v_prediction")
    assert setup.key != replace(setup, prediction="epsilon").key
    case = setup.case(tmp_path, 1)
    setup.train(case.train, tmp_path / "model", 1)
    scheduler = load_scheduler(tmp_path / "model" / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert load_model(str(tmp_path / "model")).image_shape == (1, 8, 8)
    clean, noise, time = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([3, 900])
    alpha = scheduler.alphas_cumprod[time].sqrt().reshape(2, 1, 1, 1)
    expected = alpha * noise - (1 - alpha**2).sqrt() * clean
    torch.testing.assert_close(target_of(scheduler, clean, noise, time), expected)
    assert target_of(load_scheduler(), clean, noise, time) is noise


def test_mixed_precision_trains_other_weights_which_are_saved_in_float32(tmp_path):
    setup = Setup("tiny", None, 40, ((2, 5),), TINY, plain=4, held_out=20, mixed=True)
    assert setup.key != replace(setup, mixed=False).key
    assert replace(setup, mixed=False).key == repr(setup)  # models that were cached before keep their names
    case = setup.case(tmp_path, 1)
    weights = []
    for each in (setup, replace(setup, mixed=False)):
        folder = tmp_path / str(each.mixed)
        each.train(case.train, folder, 1)
        weights.append(load_file(folder / "unet/diffusion_pytorch_model.safetensors"))
    assert all(weight.dtype == torch.float32 for weight in weights[0].values())
    apart = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    assert 0 < apart < 0.05


@pytest.mark.parametrize("latent", [None, SMALL])
def test_a_gradient_is_no_longer_than_the_clip(tmp_path, monkeypatch, latent):
    lengths = []
    step = torch.optim.AdamW.step

    def noted(self, closure=None):
        lengths.append(float(torch.cat([each.grad.flatten() for each in self.param_groups[0]["params"]]).norm()))
        return step(self, closure)

    setup = Setup("tiny", None, 40, ((2, 5),), TINY, plain=4, held_out=20, latent=latent, clip=0.01)
    case = setup.case(tmp_path, 1)
    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    setup.train(case.train, tmp_path / "model", 1)
    assert lengths[-3:] == pytest.approx([0.01] * 3, rel=1e-3)
    assert setup.key != replace(setup, clip=None).key


def load_scheduler(folder=None):
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_pretrained(folder) if folder else DDPMScheduler()
