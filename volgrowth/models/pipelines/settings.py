"""Entries of configuration files: which change what a network's output means, which only its samples, and which nothing
here knows.

An entry that changes the meaning is used, or the model is refused; it is never passed over. Entries that only say how
images are sampled are left to `volgrowth verify`. Entries that nothing knows are listed in the manifest, as diffusers
warns of them. docs/models.md shows the three tables.
"""

import inspect
import json
from collections.abc import Collection, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from volgrowth.errors import ModelError

MEANING = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "use_flow_sigmas", "timestep_type", "sigma_data", "sigma_min", "sigma_max", "invert_sigmas"),
)
"""Entries of schedulers that decide what the network was trained on."""
OLD_NAMES = ("predict_epsilon", "timesteps", "timestep_values")
"""Entries of MEANING as the first versions of diffusers wrote them."""
SAMPLING = (
    *("algorithm_type", "base_image_seq_len", "base_shift", "clip_sample", "clip_sample_range", "correct_steps"),
    *("disable_corrector", "dynamic_thresholding_ratio", "euler_at_final", "final_sigmas_type", "flow_shift"),
    *("interpolation_type", "lambda_min_clipped", "lower_order_final", "max_image_seq_len", "max_shift", "predict_x0"),
    *("rho", "sample_max_value", "sampling_eps", "set_alpha_to_one", "shift", "shift_terminal", "sigma_schedule"),
    *("skip_prk_steps", "snr", "solver_order", "solver_p", "solver_type", "steps_offset", "stochastic_sampling"),
    *("tensor_format", "thresholding", "time_shift_type", "timestep_spacing", "use_beta_sigmas", "variance_type"),
    *("use_dynamic_shifting", "use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas"),
)
"""Entries of schedulers that change only at which noise levels, and by which steps, images are sampled."""
OF_AVERAGES = (
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"),
)
"""Entries that diffusers' EMAModel adds to a network's configuration; they say how the average was taken."""
MOST_STEPS = 100_000
"""Longest table of betas that is made."""

_SHOWN = 60


def scheduler_settings(path: Path, name: str, values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the settings of a scheduler under today's names.

    Args:
        path: scheduler_config.json, for errors.
        name: class name of the scheduler.
        values: the content of the file.
        known: the arguments of the class.

    Raises:
        ModelError: a setting changes the meaning of the network's output in a way that is not supported, or two
            settings contradict each other.
    """
    settings = dict(values)
    _map_predict_epsilon(path, settings)
    _map_timesteps(path, settings)
    for key in MEANING:
        value = settings.get(key)
        if isinstance(value, float) and not isfinite(value):
            raise ModelError(f"{path} has {key} {value}: expected a finite number; save the scheduler again")
        if key not in known and _has_effect(key, value):
            raise ModelError(
                f"{path} sets {key} to {_shown(value)}, which {name} would pass over, though the network may have been "
                f"trained with it: set _class_name to the scheduler of the training, or take the entry out"
            )
    steps, betas = settings.get("num_train_timesteps", 1000), settings.get("trained_betas")
    if not isinstance(steps, int) or isinstance(steps, bool) or not 2 <= steps <= MOST_STEPS:
        raise ModelError(f"{path} has num_train_timesteps {steps!r}: expected a number of 2 to {MOST_STEPS} steps")
    if isinstance(betas, list) and len(betas) != steps:
        raise ModelError(
            f"{path} has {len(betas)} trained_betas and num_train_timesteps {steps}: expected one for each step that "
            f"the network was trained on; set num_train_timesteps to {len(betas)} if its labels are 0 to "
            f"{len(betas) - 1}"
        )
    return settings


def unknown_settings(path: Path, values: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """Return the entries of a file that nothing knows, as `FOLDER/FILE: KEY=VALUE`.

    Entries without a value, and those that begin with an underscore, are diffusers' own notes.
    """
    found = {key: value for key, value in values.items() if key not in known and not key.startswith("_")}
    where = f"{path.parent.name}/{path.name}"
    return [f"{where}: {key}={_shown(value)}" for key, value in found.items() if value not in (None, [None, None])]


def arguments(*kinds: Any) -> set[str]:
    """Return the names of the arguments of one or several classes."""
    return {name for kind in kinds for name in inspect.signature(kind.__init__).parameters} - {"self"}


def _map_predict_epsilon(path: Path, settings: dict[str, Any]) -> None:
    """Replace predict_epsilon, by which diffusers 0.3 to 0.9 said what the network predicts."""
    if (old := settings.pop("predict_epsilon", None)) is None:
        return
    if not isinstance(old, bool):
        raise ModelError(f"{path} has predict_epsilon {old!r}: expected true or false")
    meant = "epsilon" if old else "sample"
    if settings.setdefault("prediction_type", meant) != meant:
        raise ModelError(
            f"{path} has predict_epsilon {str(old).lower()} and prediction_type {settings['prediction_type']!r}, which "
            f"contradict each other: leave the one in that the network was trained with"
        )


def _map_timesteps(path: Path, settings: dict[str, Any]) -> None:
    """Replace `timesteps`, the first name of num_train_timesteps, and refuse labels that are not 0, 1, 2, ..."""
    steps, labels = settings.pop("timesteps", None), settings.pop("timestep_values", None)
    if isinstance(steps, int) and not isinstance(steps, bool):
        if settings.setdefault("num_train_timesteps", steps) != steps:
            raise ModelError(
                f"{path} has timesteps {steps} and num_train_timesteps {settings['num_train_timesteps']}, which "
                f"contradict each other: leave the one in that the network was trained with"
            )
        steps = None
    for key, value in (("timesteps", steps), ("timestep_values", labels)):
        count = settings.get("num_train_timesteps", 1000)
        plain = isinstance(value, list) and isinstance(count, int) and value in (_up(count), _up(count)[::-1])
        if value is not None and not plain:
            raise ModelError(
                f"{path} has {key} {_shown(value)}: expected labels 0 to {count} - 1; for a network that was trained "
                f"on others write factory:module:function with vg.Scheduled(..., label=...)"
            )


def _up(count: int) -> list[int]:
    return list(range(min(count, MOST_STEPS)))


def _has_effect(key: str, value: Any) -> bool:
    """Return True if a scheduler that knows this setting would read the network's output in another way by it."""
    if key == "timestep_type":
        return bool(value == "continuous")
    if key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "sigma_min", "sigma_max"):
        return False  # one scheduler's numbers of a path that the other one does not have
    return bool(value)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
