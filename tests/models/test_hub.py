"""Hub ids, through the real `snapshot_download` and a cache that holds what it would have downloaded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import save_pipeline, unet
from volgrowth.models import inspect_model

COMMITS = {"main": "a" * 40, "v2": "b" * 40}
NAME = "tests/tiny-ddpm"
ASKED: dict[str, dict[str, Any]] = {
    "default": {"name": NAME},
    "main": {"name": NAME, "revision": "main"},
    "v2": {"name": NAME, "revision": "v2"},
    "commit": {"name": NAME, "revision": COMMITS["v2"]},
    "subfolder": {"name": NAME, "subfolder": "nested"},
    "missing": {"name": "tests/nothing"},
    "missing revision": {"name": NAME, "revision": "v3"},
    "missing subfolder": {"name": NAME, "subfolder": "ema"},
}
SCRIPT = f"""
import json, torch
from volgrowth.errors import ModelError
from volgrowth.models import inspect_model, load_model
torch.set_num_threads(1)
answers = {{}}
for key, asked in {ASKED!r}.items():
    try:
        denoiser = load_model(**asked)
        output = denoiser.noise(torch.ones(1, 1, 8, 8), torch.tensor(.3))
        info = inspect_model(**asked)
        answers[key] = [info.name, info.hash, output.sum().item()]
    except ModelError as error:
        answers[key] = str(error)
print("answers", json.dumps(answers))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HF_HOME with two revisions of one repository; the second has other weights."""
    home = tmp_path_factory.mktemp("home")
    repository = home / "hub" / f"models--{NAME.replace('/', '--')}"
    for seed, (revision, commit) in enumerate(COMMITS.items()):
        snapshot = repository / "snapshots" / commit
        save_pipeline(snapshot, unet(seed=seed))
        if revision == "main":
            save_pipeline(snapshot / "nested", unet(seed=7))
        reference = repository / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)
    return home


@pytest.fixture(scope="module")
def answers(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Load each name in a fresh process without a network, since hub settings are read at the start."""
    ignored = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN")
    environment = {key: value for key, value in os.environ.items() if key not in ignored}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**environment, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("answers "))
    return json.loads(line.removeprefix("answers "))


def snapshot(cache: Path, revision: str) -> Path:
    return cache / "hub" / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMITS[revision]


def test_a_hub_id_is_its_main_branch(answers: dict[str, Any], cache: Path) -> None:
    assert answers["default"] == answers["main"]
    assert answers["main"][:2] == [NAME, inspect_model(str(snapshot(cache, "main"))).hash]


def test_revisions_are_tags_and_commits(answers: dict[str, Any], cache: Path) -> None:
    assert answers["v2"] == answers["commit"]
    assert answers["v2"][1] == inspect_model(str(snapshot(cache, "v2"))).hash
    assert answers["v2"][1] != answers["main"][1]
    assert answers["v2"][2] != answers["main"][2]


def test_subfolders_of_a_repository(answers: dict[str, Any], cache: Path) -> None:
    assert answers["subfolder"][1] == inspect_model(str(snapshot(cache, "main") / "nested")).hash
    assert answers["subfolder"][1] != answers["main"][1]


@pytest.mark.parametrize(
    ("key", "parts"),
    {
        "missing": ["model tests/nothing is no local folder", "did not give it (", "check the name"],
        "missing revision": [f"model {NAME} is no local folder", "did not give it at revision v3 (", "the revision"],
        "missing subfolder": [f"{NAME} has no subfolder 'ema': it holds nested, scheduler, unet"],
    }.items(),
)
def test_what_the_hub_does_not_have(answers: dict[str, Any], key: str, parts: list[str]) -> None:
    assert isinstance(answers[key], str)
    assert "\n" not in answers[key]
    for part in parts:
        assert part in answers[key]


def test_a_local_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    shutil.copytree(snapshot(cache, "v2"), tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert inspect_model(NAME).hash == inspect_model(str(snapshot(cache, "v2"))).hash
