import pytest
from pydantic import ValidationError

from volgrowth.config import AuditConfig, PaperMeasure, ScreenMeasure, StandardMeasure
from volgrowth.errors import UsageError


def build(**settings: object) -> AuditConfig:
    return AuditConfig.build(**{"model": "m", "data": "d", "output": "o", **settings})


def test_a_measure_is_chosen_by_its_preset_and_standard_needs_no_name():
    assert build().measure == StandardMeasure()
    assert build(measure={"loss_level": 0.4}).measure == StandardMeasure(loss_level=0.4)
    assert build(measure={"preset": "screen"}).measure == ScreenMeasure()
    assert build(measure={"preset": "paper", "radius": 0.1}).measure == PaperMeasure(radius=0.1)


def test_the_published_first_step_starts_where_it_was_published():
    assert PaperMeasure().times == (1e-3, 2e-3)
    assert PaperMeasure(num_steps=1000).times[-1] == 1.001


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        build().seed = 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measure": {"preset": "paper", "num_steps": 0}}, "measure.num_steps: expected 1 or more, got 0"),
        ({"measure": {"loss_level": 0.1}}, "measure: loss_level must be above norm_level, which is 0.1"),
        ({"measure": {"levels": [0.2]}}, "measure.levels is unknown.*The settings here are norm_level"),
        ({"measure": {"loss_level": -1}}, "measure.loss_level: expected above 0, got -1"),
        ({"max_failed": 2}, "max_failed: expected at most 1, got 2"),
        ({"nonsense": 1}, "nonsense is unknown: the settings here are model, revision"),
        ({"sead": 1}, r"sead is unknown: did you mean seed\? The settings here are model"),
        ({"loss_level": 1}, r"loss_level is unknown: did you mean measure.loss_level\?"),
        (
            {"measure": {"preset": "papre"}},
            r"measure.preset: expected standard, .* or volume, got 'papre' \(did you mean pap",
        ),
        ({"measure": {"num_tangents": 3}}, "measure.num_tangents is unknown to preset standard: preset paper has it"),
        ({"engine": "loca"}, r"engine: expected ray or local, got 'loca' \(did you mean local\?\)"),
        ({"shard_size": "x"}, "shard_size: expected a whole number, got 'x'"),
        ({"max_failed": None}, "max_failed: expected a number, got None"),
        ({"cascade": "perhaps"}, "cascade: expected true or false, got 'perhaps'"),
        ({"model": None}, "model: expected text, got None"),
        ({"dtype": "int8"}, "dtype: expected float32, float64, bfloat16 or float16, got 'int8'"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_given(settings, message):
    with pytest.raises(UsageError, match=f"setting {message}"):
        build(**settings)


def test_local_paths_are_found_from_anywhere_and_ids_stay_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.parquet").touch()
    config = build(data="train.parquet", model="google/ddpm-cifar10-32", holdout="*.parquet", output="out")
    assert config.data == str(tmp_path / "train.parquet")
    assert config.model == "google/ddpm-cifar10-32"
    assert config.holdout == str(tmp_path / "*.parquet")
    assert config.output == str(tmp_path / "out")
    for pattern in ("data/{00000..00012}.tar", "{a,b}.parquet"):
        assert build(data=pattern).data == str(tmp_path / pattern)
    assert build(output="s3://bucket/x").output == "s3://bucket/x"
    assert build(model="factory:a:b").model == "factory:a:b"


def test_evaluations_count_growth_without_the_condition_and_with_guidance():
    paper = {"preset": "paper", "num_tangents": 3}
    assert build(measure=paper, class_column="label").evaluations(has_null=False) == 4
    assert build(measure=paper, class_column="label").evaluations(has_null=True) == 8
    assert build(measure=paper, class_column="label", guidance=2.0).evaluations(has_null=True) == 16
    assert build(class_column="label", guidance=2.0).evaluations(has_null=True) == StandardMeasure().evaluations + 2
