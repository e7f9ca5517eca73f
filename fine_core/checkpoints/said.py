"""What a file says about its model beside the tensors. Models that do not predict noise can have a DiT's shapes too.

The search covers arguments, configs and hyperparameters, nested up to MAX_NESTING levels, and the file's name.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from fine_core.checkpoints.native import CheckpointError
from fine_core.parameterizations.ddpm import BETA_END, BETA_START, NUM_TIMESTEPS

# Keys that name a prediction: of the first ones every value must mean noise, of the others none may mean anything else.
STRICT_KEYS = {"prediction", "prediction_type", "pred_type", "parameterization", "parametrization", "model_mean_type"}
LOOSE_KEYS = {"objective", "target", "target_type", "prediction_target", "pred_target", "predict", "predicts", "pred"}
LOOSE_KEYS |= {"mean_type", "model_prediction", "loss", "loss_type", "output_type"}
NOISE = {"noise", "eps", "epsilon", "e", "ddpm", "default"}
OTHERS = re.compile(r"v|vel|velocity|x_?0|x_?start|start_?x|x|sample|image|score|flow.*|rectified.*|edm|prev.*", re.I)
AFFIXES = re.compile(r"^(pred|predict|prediction)[-_]|[-_](pred|prediction)$")

# Flags that say that noise is not predicted where they are on, or where they are off.
ON_FLAGS = {"predict_xstart", "predict_x0", "pred_x0", "predict_v", "pred_v", "predict_velocity", "use_velocity", "v_pred"}
ON_FLAGS |= {"v_prediction", "velocity_prediction", "v_parameterization", "ss_v_parameterization", "rectified_flow", "flow"}
ON_FLAGS |= {"flow_matching", "use_flow", "use_flow_matching", "use_flow_sigmas", "path_type", "transport", "interpolant"}
ON_FLAGS |= {"flow_shift", "sigma_data"}
OFF_FLAGS = {"predict_epsilon", "predict_noise", "predict_eps"}

# Keys that name a model or its training, and names of models that do not predict DDPM's noise.
NAME_KEYS = {
    "model",
    "model_type",
    "model_name",
    "arch",
    "architecture",
    "network",
    "trainer",
    "_class_name",
    "_target_",
    "name",
}
NAME_KEYS |= {"out", "output_dir", "results_dir", "exp_name", "experiment", "run_name", "scheduler", "noise_scheduler"}
_SIT = r"sit(?=[-_/ ]?(?:s|b|l|xl)(?![a-z]))"
_FLOWS = r"flow[-_ ]?match|rectified[-_ ]?flow|flow(?=trainer)|edm(?=euler|$)"
OTHER_NAMES = re.compile(rf"(?<![a-z])({_SIT}|sit$|repa(?![a-z])|{_FLOWS})", re.I)
OTHER_FILES = re.compile(
    rf"(?<![a-z])({_SIT}|sit(?![a-z])|repa(?![a-z])|velocity|v[-_]?pred|x0|x[-_]?start|flow[-_]?match|flow(?![a-z])|rectified"
    r"|edm(?![a-z]))",
    re.I,
)

# DiT's noise schedule: values that must be these, and keys whose value may be anything but another schedule.
SCHEDULE = {"beta_schedule": "linear", "noise_schedule": "linear"}
SCHEDULE |= {"beta_start": BETA_START, "linear_start": BETA_START, "beta_end": BETA_END, "linear_end": BETA_END}
STEPS_KEYS = {"num_train_timesteps", "diffusion_steps", "num_diffusion_timesteps"}
LOOSE_STEPS = {"num_timesteps", "timesteps"}  # which may also be those of sampling
LOOSE_SCHEDULES = {"schedule", "schedule_name", "noise_scheduler", "scheduler"}
OTHER_SCHEDULES = {
    "cosine",
    "squaredcos_cap_v2",
    "sqrt",
    "sigmoid",
    "scaled_linear",
    "karras",
    "laplace",
    "quad",
    "exponential",
}
CHANGED_BETAS = {"rescale_betas_zero_snr", "zero_terminal_snr", "trained_betas"}

CLASSES_KEYS = ("num_classes", "n_classes", "class_num", "nb_classes")
DROPOUT_KEYS = ("class_dropout_prob", "class_dropout", "label_dropout", "label_dropout_prob", "label_drop_prob")
DROPOUT_KEYS += ("cond_drop_prob", "p_uncond", "uncond_prob", "cfg_prob")
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "none": None, "null": None, "": None}
MAX_NESTING = 8

Said = list[tuple[str, Any]]


def said_in(content: Any) -> Said:
    """Every (name, plain value) within, in order; of `a.b.c` the name is `c`. Numbers and words in texts are values too."""
    return list(_walk(content, MAX_NESTING))


def _walk(content: Any, levels: int) -> Iterator[tuple[str, Any]]:
    if isinstance(content, argparse.Namespace):
        content = vars(content)
    if isinstance(content, list | tuple):
        for item in content:
            yield from _walk(item, levels - 1)
    if not isinstance(content, dict) or levels == 0:
        return
    for key, value in content.items():
        name = str(key).rpartition(".")[2].lower().replace("-", "_")
        for one in value if isinstance(value, list | tuple) and value else (value,):
            yield from _values(name, one, levels)


def _values(name: str, value: Any, levels: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, str) and value.strip().startswith(("{", "[")):
        try:
            value = json.loads(value)
        except ValueError:
            return
    if isinstance(value, dict | argparse.Namespace | list | tuple):
        yield name, True
        yield from _walk(value, levels - 1)
    elif (plain := _plain(value)) is not NotImplemented:
        yield name, plain


def _plain(value: Any) -> Any:
    """A text, number, bool or None; NotImplemented for anything else."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        value = value.item()
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in WORDS:
            return WORDS[text.lower()]
        try:
            return float(text)
        except ValueError:
            return text
    return value if value is None or isinstance(value, bool | int | float) else NotImplemented


def check_predicts_noise(said: Said, what: str) -> None:
    """Raises CheckpointError if one of the facts says that the model predicts no noise, or noise of another schedule."""
    for name, value in said:
        if (name in ON_FLAGS and value not in (None, False, 0)) or (name in OFF_FLAGS and value is False):
            raise _refused(what, name, value)
        if isinstance(value, str):
            text = AFFIXES.sub("", value.lower().rpartition(".")[2])  # ModelMeanType.EPSILON, pred_noise
            if (name in STRICT_KEYS and text not in NOISE) or (name in LOOSE_KEYS and OTHERS.fullmatch(text)):
                raise _refused(what, name, value)
            if name in NAME_KEYS and OTHER_NAMES.search(value):
                raise _refused(what, name, value)
        if _is_other_schedule(name, value):
            dits = f"linear, {NUM_TIMESTEPS} steps, betas from 1e-4 to 0.02"
            raise CheckpointError(f"{what} says {name} {value}: another noise schedule than DiT's ({dits}), the only one here")


def _is_other_schedule(name: str, value: Any) -> bool:
    if value is None or (value is False and name in CHANGED_BETAS):
        return False
    if name in CHANGED_BETAS:
        return True
    if isinstance(value, str):
        expected = SCHEDULE.get(name)
        known = value.lower() in OTHER_SCHEDULES
        return (isinstance(expected, str) and value.lower() != expected) or (name in LOOSE_SCHEDULES and known)
    if name in STEPS_KEYS:
        return value != NUM_TIMESTEPS
    if name in LOOSE_STEPS:
        return value > NUM_TIMESTEPS
    expected = SCHEDULE.get(name)
    return isinstance(expected, float) and not math.isclose(value, expected, rel_tol=1e-4)


def check_file_name(name: str) -> None:
    """Raises CheckpointError for a file without arguments whose name says that its model predicts something else."""
    if found := OTHER_FILES.search(name):
        raise CheckpointError(
            f"{name} says {found[0]!r}: by its name the model does not predict noise, and nothing within says that it does; "
            "name a checkpoint of a DiT, or give the file another name if its model predicts noise"
        )


def _refused(what: str, name: str, value: Any) -> CheckpointError:
    fact = name if isinstance(value, bool) else f"{name} {value}"
    return CheckpointError(f"{what} says {fact}: its model does not predict noise; name a checkpoint of a DiT that does")


def says_noise(said: Said) -> bool:
    return any(
        name in STRICT_KEYS and isinstance(value, str) and AFFIXES.sub("", value.lower()) in NOISE for name, value in said
    )


def classes_said(said: Said) -> list[int]:
    """The numbers of classes that are said, in order."""
    numbers = [value for name, value in said if name in CLASSES_KEYS and isinstance(value, int | float)]
    return [int(number) for number in numbers if number > 0 and number == int(number)]


def drops_labels(said: Said) -> bool:
    """Whether labels were dropped in training, as DiT's code does unless it is told otherwise."""
    return not any(name in DROPOUT_KEYS and value is not None and value == 0 for name, value in said)
