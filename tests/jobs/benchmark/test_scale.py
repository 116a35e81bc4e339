import json

import pytest

from jobs.benchmark.cost.scale import CostModel, Scale, markdown, run_scale, worker_counts, write_scale


@pytest.mark.ray
@pytest.mark.slow
def test_audits_of_two_sizes_give_a_cost_model(tmp_path):
    found, models = run_scale(tmp_path, (400, 200), (1,))
    write_scale(tmp_path, found, models, "this machine")
    numbers = json.loads((tmp_path / "scale.json").read_text())
    assert [each["rows"] for each in numbers["audits"]] == [200, 400]
    for each in found:
        assert each.seconds > each.resume_seconds > 0
        assert min(each.driver_mib, each.analysis_mib, each.cpu, each.images_per_second) > 0
    [model] = models
    assert model.loop_cpu > 0
    for each in found:  # both lie on the line
        assert model.start_seconds + each.rows * model.row_seconds == pytest.approx(each.seconds)


def test_the_page_says_what_a_hundred_million_rows_would_take():
    audit = Scale(1000, 1, 20.0, 500.0, 300.0, 400.0, 30.0, 4.0)
    model = CostModel(workers=1, start_seconds=15.0, row_seconds=5e-4, row_cpu=5.76e-4, loop_cpu=4.8e-4)
    page = markdown([audit], [model], "this machine")
    assert "| 0.576 ms | 0.480 ms | +20% | 1.00 h | 0.12 h | 0.02 h |" in page
    assert "100,000,000" not in markdown([audit], [], "this machine")


def test_workers_are_tried_up_to_the_cpus():
    counts = worker_counts()
    assert counts[0] == 1
    assert counts == sorted(set(counts))
