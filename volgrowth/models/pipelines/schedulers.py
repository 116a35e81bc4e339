"""Diffusers' schedulers: scheduler_config.json becomes a parameterization, and the noise levels of the sampler.

Whatever the steps of a scheduler (Euler, Heun, DPM-Solver, ...), its network was trained on one table of betas, one
range of noise levels or one straight path, and that decides the measurement. Its other settings, `timestep_spacing`,
`steps_offset`, Karras levels and shifts, decide at which noise levels the sampler evaluates the network, and so how
`volgrowth verify` draws samples.
"""

from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from volgrowth.errors import ModelError, first_line
from volgrowth.models.checkpoint_files import read_json
from volgrowth.models.network import Levels
from volgrowth.models.parameterizations import EDM, Parameterization, PredictionType, Scheduled
from volgrowth.models.pipelines.library_classes import class_of_diffusers
from volgrowth.models.pipelines.settings import (
    MEANING,
    OLD_NAMES,
    SAMPLING,
    arguments,
    scheduler_settings,
    unknown_settings,
)
from volgrowth.numerics import DDPMSchedule, FlowMatchingSchedule, VESchedule

TABLES = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
)
"""Schedulers of networks trained on a table of betas, or on straight paths if they set `use_flow_sigmas`."""
EDM_SCHEDULERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
VE_SCHEDULERS = ("ScoreSdeVeScheduler",)
SCHEDULERS = (*TABLES, *EDM_SCHEDULERS, *FLOW_SCHEDULERS, *VE_SCHEDULERS)
PREDICTIONS = ("epsilon", "v_prediction", "sample")

FLOW = "flow_prediction"
LAST_TIME = 0.999
"""Last time of a straight path that is used; at time 1 only noise is left, and the noise level is infinite."""


class SchedulerConfig:
    """A checked scheduler_config.json.

    Args:
        path: the file, or the name of a scheduler that is loaded already.
        values: the content of the file; it is read if not given.

    Attributes:
        values: the content of the file.
        settings: the same under today's names.
        name: class name of the scheduler.
        num_steps: how many time steps the network was trained on.
        parameterization: how the network is evaluated.

    Raises:
        ModelError: the scheduler is not known, or its settings make no noise schedule.
    """

    def __init__(self, path: Path, values: dict[str, Any] | None = None):
        self.path, self.values = path, read_json(path) if values is None else values
        self.settings = self.values
        self.name = self._choice("_class_name", "DDPMScheduler", SCHEDULERS)
        kind = self._class()
        known = arguments(kind) | ({"prediction_type"} if self.name in FLOW_SCHEDULERS else set())
        self.settings = scheduler_settings(path, self.name, self.values, known)
        self.scheduler = self._scheduler(kind)
        config = self.scheduler.config
        self.is_flow = self.name in FLOW_SCHEDULERS or bool(config.get("use_flow_sigmas"))
        if config.get("invert_sigmas"):
            raise ModelError(f"{path} has invert_sigmas: expected time 1 to be noise; use factory:module:function")
        self.num_steps: int = config["num_train_timesteps"]
        self.parameterization = self._parameterization()

    def sampling_levels(self, image_tokens: int) -> Levels:
        """Return a function from a number of steps to the sampler's rising noise levels, float64.

        Args:
            image_tokens: tokens of one state, which some schedulers shift their levels by.
        """

        def levels(steps: int) -> Tensor:
            found = self._levels(steps, image_tokens).double()
            low, high = self.parameterization.noise_levels
            return found.clamp(low, high).unique()

        return levels

    def _levels(self, steps: int, image_tokens: int) -> Tensor:
        """Return the noise levels at which the scheduler evaluates the network, in any order."""
        scheduler = self.scheduler
        if self.name in VE_SCHEDULERS:
            low, high = self.parameterization.noise_levels
            return torch.linspace(log(low), log(high), steps, dtype=torch.float64).exp()
        scheduler.set_timesteps(steps, **self._shift(image_tokens))
        if self.is_flow:
            share = scheduler.sigmas[scheduler.sigmas > 0].double().clamp(max=LAST_TIME)
            return share / (1 - share)
        if isinstance(self.parameterization, EDM):
            return scheduler.sigmas[scheduler.sigmas > 0]
        # between the steps of a second-order sampler lie its second evaluations
        times = scheduler.timesteps[:: getattr(scheduler, "order", 1)].double()
        return self.parameterization.schedule.noise_level(times)

    def _shift(self, image_tokens: int) -> dict[str, float]:
        """Return the shift of schedulers that shift by the image's size: linear in the number of tokens."""
        config = self.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return {}
        few, many = config["base_image_seq_len"], config["max_image_seq_len"]
        share = (image_tokens - few) / (many - few)
        return {"mu": config["base_shift"] + share * (config["max_shift"] - config["base_shift"])}

    def unknown_settings(self) -> list[str]:
        """Return the entries of the file that nothing knows, as `FOLDER/FILE: KEY=VALUE`."""
        return unknown_settings(self.path, self.values, (*MEANING, *OLD_NAMES, *SAMPLING, *arguments(self._class())))

    def _class(self) -> Any:
        """Return the class of the scheduler in diffusers."""
        kind = class_of_diffusers(self.name)
        if kind is None:
            raise ModelError(f"{self.path} asks for {self.name}, which this diffusers lacks: install a newer one")
        return kind

    def _scheduler(self, kind: Any) -> Any:
        """Make the scheduler itself, which knows the defaults of settings that the file omits."""
        self._choice("prediction_type", "epsilon", (*PREDICTIONS, FLOW))
        known = arguments(kind)
        try:
            settings = {key: value for key, value in self.settings.items() if key in known}
            if "skip_prk_steps" in known:  # the first steps of PNDM, by Runge-Kutta, lie between the others
                settings["skip_prk_steps"] = True
            return kind(**settings)
        except Exception as error:  # each scheduler refuses settings in its own way
            raise ModelError(
                f"{self.path} makes no {self.name} ({first_line(error)}): save the scheduler again"
            ) from None

    def _parameterization(self) -> Parameterization:
        """Return how the network is evaluated, by the kind of path that it was trained on."""
        config = self.scheduler.config
        if self.name in VE_SCHEDULERS:
            return Scheduled(VESchedule(), "score", (config["sigma_min"], config["sigma_max"]))
        if self.is_flow:
            self._choice("prediction_type", "epsilon" if self.name in TABLES else FLOW, (FLOW,))
            first = 1 / self.num_steps
            levels = first / (1 - first), LAST_TIME / (1 - LAST_TIME)
            return Scheduled(FlowMatchingSchedule(), "flow_prediction", levels, lambda time: self.num_steps * time)
        continuous = config.get("timestep_type") == "continuous"
        if self.name in EDM_SCHEDULERS or continuous:
            return self._preconditioned(continuous)
        return self._table(self._choice("prediction_type", "epsilon", PREDICTIONS))

    def _preconditioned(self, continuous: bool) -> Parameterization:
        """Return EDM's preconditioning; continuous Euler with v_prediction is EDM on data of unit deviation, of -F."""
        config = self.scheduler.config
        prediction = self._choice("prediction_type", "epsilon", ("v_prediction",) if continuous else PREDICTIONS[:2])
        sigma_data = 1.0 if continuous else config["sigma_data"]
        levels = config.get("sigma_min") or 0.002, config.get("sigma_max") or 80.0
        return EDM(sigma_data, levels, -1 if prediction == "v_prediction" else 1)

    def _table(self, prediction: PredictionType) -> Parameterization:
        """Return the parameterization on the scheduler's own betas, accumulated in float64."""
        table = torch.cumprod(1 - self.scheduler.betas.double(), 0)
        try:
            # a zero-terminal-SNR table ends in pure noise, where no noise level exists
            schedule = DDPMSchedule(table[:-1] if table[-1] == 0 else table)
        except ValueError as error:
            raise ModelError(
                f"the betas of {self.path} make no noise schedule ({error}): expected each of them between 0 and 1"
            ) from None
        return Scheduled.on_table(schedule, prediction)

    def _choice(self, key: str, default: str, known: tuple[str, ...]) -> Any:
        """Return a setting that must be one of the known values."""
        value = self.settings.get(key, default)
        if value not in known:
            raise ModelError(f"{self.path} has {key} {value!r}: expected one of {', '.join(known)}")
        return value
