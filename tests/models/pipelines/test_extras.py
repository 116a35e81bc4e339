"""Models that need what is not installed: a sentence with the command."""

import sys

from tests.support.checkpoints import problem, save_pipeline
from tests.support.pipelines import build
from volgrowth.models import load_model


def test_models_of_captions_ask_for_the_extra_and_others_do_without(tmp_path, monkeypatch):
    build("sd1", tmp_path / "sd1")
    save_pipeline(tmp_path / "ddpm")
    monkeypatch.setitem(sys.modules, "transformers", None)
    said = problem(lambda: load_model(str(tmp_path / "sd1")))
    assert "holds a model of captions, and transformers cannot be imported" in said
    assert said.endswith("pip install 'volgrowth[text]'")
    assert load_model(str(tmp_path / "ddpm")).condition is None
