"""What a file says about its model beside the tensors. Models that do not predict noise can have a DiT's shapes too.

The search covers arguments, configs and hyperparameters, nested up to MAX_NESTING levels, and the file's name.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

from fine_core.checkpoints.native import CheckpointError

# What names a prediction, and the values that mean noise.
PREDICTION_KEYS = {
    "prediction",
    "prediction_type",
    "pred_type",
    "objective",
    "parameterization",
    "parametrization",
    "model_mean_type",
    "mean_type",
    "predict",
    "predicts",
    "model_prediction",
    "target_type",
}
NOISE = {
    "",
    "none",
    "noise",
    "eps",
    "epsilon",
    "e",
    "ddpm",
    "pred_noise",
    "predict_noise",
    "pred_epsilon",
    "default",
    "eps_pred",
}
LOSSES = {"mse", "l1", "l2", "huber", "rescaled_mse", "kl", "rescaled_kl", "hybrid"}  # an `objective` may be a loss
FLAGS = {  # true: it does not predict noise
    "predict_xstart",
    "predict_x0",
    "pred_x0",
    "predict_v",
    "predict_velocity",
    "v_prediction",
    "v_pred",
    "velocity_prediction",
    "flow_matching",
    "use_flow",
    "rectified_flow",
}
OF_FLOWS = {"path_type", "transport", "interpolant"}  # SiT's, whose networks are DiTs in every shape
OTHER_NAMES = re.compile(
    r"(?<![a-z0-9])(sit(?=[-_/ ](?:s|b|l|xl)\b)|repa(?![a-z])|flow[-_ ]?match|rectified[-_ ]?flow|edm)", re.I
)
OTHER_FILES = re.compile(
    r"(?<![a-z0-9])(sit|repa|velocity|v[-_]?pred(?:iction)?|x0|x[-_]?start|flow|rectified|edm|fm)(?![a-z0-9])", re.I
)
SCHEDULE = {"beta_schedule": "linear", "noise_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
STEPS_KEYS = {"num_train_timesteps", "diffusion_steps", "num_diffusion_timesteps"}
NUM_TIMESTEPS = 1000
CLASSES_KEYS = ("num_classes", "n_classes", "class_num", "nb_classes")
DROPOUT_KEYS = ("class_dropout_prob", "class_dropout", "label_dropout", "label_drop_prob", "cond_drop_prob")
MAX_NESTING = 8

Said = list[tuple[str, Any]]


def said_in(content: Any) -> Said:
    """Every (name, plain value) within, in order; of `a.b.c` the name is `c`."""
    return list(_walk(content, MAX_NESTING))


def _walk(content: Any, levels: int) -> Iterator[tuple[str, Any]]:
    if isinstance(content, argparse.Namespace):
        content = vars(content)
    if not isinstance(content, dict) or levels == 0:
        return
    for key, value in content.items():
        name = str(key).rpartition(".")[2].lower().replace("-", "_")
        if value is None or isinstance(value, (str, bool, int, float)):
            yield name, value
        elif isinstance(value, (dict, argparse.Namespace)):
            yield name, ""
            yield from _walk(value, levels - 1)


def check_predicts_noise(said: Said, what: str) -> None:
    """Raises CheckpointError if one of the facts says that the model predicts no noise, or noise of another schedule."""
    for name, value in said:
        text = str(value).lower().strip().rpartition(".")[2]  # ModelMeanType.EPSILON
        if name in PREDICTION_KEYS and text not in NOISE | LOSSES:
            raise _refused(what, f"{name} {value}")
        if name in FLAGS and value not in (False, 0, None, "", "false", "False"):
            raise _refused(what, name)
        if name in OF_FLOWS:
            raise _refused(what, f"{name} {value}".strip())
        if isinstance(value, str) and (found := OTHER_NAMES.search(value)):
            raise _refused(what, found[0] if name == "_class_name" else f"{name} {value}")
        steps = name in STEPS_KEYS and value not in (None, "", NUM_TIMESTEPS)
        if steps or (name in SCHEDULE and value not in (None, "", SCHEDULE[name])):
            expected = NUM_TIMESTEPS if steps else SCHEDULE[name]
            raise CheckpointError(
                f"{what} says {name} {value}: another noise schedule than DiT's ({expected}), which is the only one here"
            )


def check_file_name(name: str) -> None:
    """Raises CheckpointError for a file without arguments whose name says that its model predicts something else."""
    if found := OTHER_FILES.search(name):
        raise CheckpointError(
            f"{name} says {found[0]!r}: by its name the model does not predict noise, and nothing within says that it does; "
            "name a checkpoint of a DiT, or give the file another name if its model predicts noise"
        )


def _refused(what: str, fact: str) -> CheckpointError:
    return CheckpointError(f"{what} says {fact}: its model does not predict noise; name a checkpoint of a DiT that does")


def says_noise(said: Said) -> bool:
    return any(name in PREDICTION_KEYS and str(value).lower() in NOISE - {"", "none", "default"} for name, value in said)


def classes_said(said: Said) -> list[int]:
    """The numbers of classes that are said, in order."""
    return [value for name, value in said if name in CLASSES_KEYS and isinstance(value, int) and value > 0]


def drops_labels(said: Said) -> bool:
    """Whether labels were dropped in training, as DiT's code does unless it is told otherwise."""
    return not any(name in DROPOUT_KEYS and value == 0 and value is not None for name, value in said)
