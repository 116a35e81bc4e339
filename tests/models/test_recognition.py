"""Files and folders of other kinds: each sentence says what it is and what to do. No pickle is opened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.checkpoints import WEIGHTS, problem, save_pipeline
from volgrowth.models import inspect_model, load_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ONE = torch.ones(1)


def tensors(*names: str) -> Callable[[Path], object]:
    return lambda path: save_file({name: torch.ones(1) for name in names}, path)


def saved(content: Any, **options: Any) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path, **options)


LUCIDRAINS = {"step": 10, "model": {}, "opt": {}, "ema": {"ema_model.model.init_conv.weight": ONE}, "scaler": None}
GUIDED = {"time_embed.0.weight": ONE, "input_blocks.0.0.weight": ONE, "out.2.weight": ONE}
K_DIFFUSION = {"model": {}, "model_ema": {}, "opt": {}, "sched": {}, "epoch": 1, "step": 2}
COMPVIS = {"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": ONE}}

FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "model-10.pt": (saved(LUCIDRAINS), "a checkpoint of lucidrains' denoising-diffusion-pytorch, which can run code"),
    "old-10.pt": (saved(LUCIDRAINS, _use_new_zipfile_serialization=False), "a checkpoint of lucidrains'"),
    "ema_0.9999_050000.pt": (saved(GUIDED), "weights in the names of OpenAI's guided-diffusion"),
    "model_00100000.pth": (saved(K_DIFFUSION), "a checkpoint of k-diffusion"),
    "unet.bin": (saved({"conv_in.weight": ONE, "conv_out.weight": ONE}), "weights in the names of diffusers"),
    "last.ckpt": (saved({"other": ONE}), "a pickle of torch, which can run code when it is opened"),
    "not-a-pickle.pt": (lambda path: path.write_bytes(b"hello"), "a pickle of torch"),
    "empty.pt": (lambda path: path.write_bytes(b""), "a pickle of torch"),
    "v1-5-pruned.ckpt": (
        saved(COMPVIS),
        "a whole pipeline in one file, in the names of CompVis: turn it into a folder",
    ),
    "sd15.safetensors": (
        tensors("model.diffusion_model.out.2.weight", "first_stage_model.x"),
        r"StableDiffusionPipeline.from_single_file(",
    ),
    "pytorch_lora_weights.safetensors": (
        tensors("unet.down_blocks.0.lora.down.weight"),
        "holds low-rank weights (LoRA) alone: audit the pipeline that they were trained on, with `volgrowth audit",
    ),
    "learned_embeds.safetensors": (tensors("<cat-toy>"), "the embeddings of a textual inversion alone"),
    "network.safetensors": (tensors("blocks.0.weight"), "holds tensors (blocks.0.weight) and no configuration"),
    "damaged.safetensors": (lambda path: path.write_bytes(b"\xff" * 40), "cannot be read"),
    "pointer.safetensors": (lambda path: path.write_text(POINTER), "is a pointer of git-lfs and no content: run `git"),
}


@pytest.mark.parametrize("given", ["the file", "its folder"])
@pytest.mark.parametrize("name", FILES)
def test_files_are_told_by_what_is_in_them(tmp_path: Path, name: str, given: str) -> None:
    write, message = FILES[name]
    write(tmp_path / name)
    for call in (inspect_model, load_model):
        said = problem(call, str(tmp_path / name if given == "the file" else tmp_path))
        assert message in said
        assert name in said


def test_a_pickle_of_nvlabs_is_to_be_converted(tmp_path: Path) -> None:
    path = tmp_path / "edm.pkl"
    path.write_bytes(b"\x80\x04\x8c\x17torch_utils.persistence\x94.")
    said = problem(inspect_model, str(path))
    assert f"convert it with `volgrowth convert {path} NEW_FOLDER --allow-pickle`" in said


def test_no_pickle_runs(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "exploded",)

    torch.save({"model": Bomb()}, tmp_path / "model-10.pt")
    problem(inspect_model, str(tmp_path / "model-10.pt"))
    problem(inspect_model, str(tmp_path))
    assert not (tmp_path / "exploded").exists()


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda folder: None, "nor config.json (a diffusers network), but nothing; save one with"),
    "a README": (lambda folder: (folder / "README.md").write_text("#"), "but README.md; save one with"),
    "half a download": (
        lambda folder: (folder / "model.safetensors.incomplete").write_bytes(b"1"),
        "was not finished (model.safetensors.incomplete): repeat it",
    ),
    "a controlnet": (
        lambda folder: (folder / "config.json").write_text('{"_class_name": "ControlNetModel"}'),
        "holds ControlNetModel (it only steers another network: audit that one), which volgrowth does not know",
    ),
    "a refiner": (
        lambda folder: (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLImg2ImgPipeline"}'),
        "(a refiner knows only the last steps: audit the base model that it refines): expected one of",
    ),
    "a pointer as configuration": (
        lambda folder: (folder / "config.json").write_text(POINTER),
        "is a pointer of git-lfs and no content: run `git lfs pull`",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_that_hold_no_model(tmp_path: Path, kind: str) -> None:
    write, message = FOLDERS[kind]
    write(tmp_path)
    assert message in problem(inspect_model, str(tmp_path))


def test_pointers_and_cut_downloads_in_place_of_weights(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    path = tmp_path / "unet" / WEIGHTS
    path.write_text(POINTER)
    said = problem(inspect_model, str(tmp_path))
    assert said.startswith(f"{path} is a pointer of git-lfs and no content: run `git lfs pull` in {tmp_path / 'unet'}")
    path.rename(path.with_name(f"{WEIGHTS}.incomplete"))
    assert f"was not finished ({WEIGHTS}.incomplete): repeat it" in problem(inspect_model, str(tmp_path))


def test_links_are_followed_and_broken_ones_named(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    assert inspect_model(str(tmp_path / "link")).hash == inspect_model(str(tmp_path / "model")).hash
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    assert f"is a link to {tmp_path / 'gone'}, which is not there" in problem(inspect_model, str(tmp_path / "broken"))


def test_names_that_are_nearly_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder comes before a hub id of the same name; a slip of the hand is answered with the name that is there."""
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "google/ddpm")
    assert inspect_model("google/ddpm").kind == "UNet2DModel"
    assert "is no local folder (there is google/ddpm), and the hub" in problem(inspect_model, "google/DDPM")
    assert "does not exist (there is google/ddpm): expected" in problem(inspect_model, "./google/dpm")
    assert "(there is" not in problem(inspect_model, "google/other")
