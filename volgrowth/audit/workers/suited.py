"""The settings that suit a GPU, for those that a user leaves open.

No audit uses them by itself yet: they wait for a measurement on a GPU (`python jobs/benchmark.py gpu`). An audit would
have to settle them before its manifest is frozen, so that it goes on with the same precision on any other device.
"""

from volgrowth.config import AuditConfig, PaperMeasure


def suited_to_gpu(config: AuditConfig) -> AuditConfig:
    """Return settings in which all that was not given suits a GPU.

    Preset `paper` takes the derivative by forward mode: differences of length .05 need float32 without TF32, the
    slowest arithmetic of a GPU. Then every network runs in bfloat16. The batch size is searched for. What was given
    stays, so that `measure.derivative=difference` keeps float32.

    Args:
        config: the settings, which know what was given (`model_fields_set`).
    """
    given, measure = config.model_fields_set, config.measure
    if isinstance(measure, PaperMeasure) and "derivative" not in measure.model_fields_set:
        measure = measure.model_copy(update={"derivative": "jvp"})
    differences = isinstance(measure, PaperMeasure) and measure.derivative == "difference"
    open_to_choice = "dtype" not in given and not differences
    return config.model_copy(
        update={
            "measure": measure,
            "dtype": "bfloat16" if open_to_choice else config.dtype,
            "batch_size": config.batch_size if "batch_size" in given else None,
        }
    )
