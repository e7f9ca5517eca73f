"""Ways to start a base model, one file each: a recipe for the training loop behind the spec of the same name."""

from __future__ import annotations

from collections.abc import Callable

from fine_core.dit import DiT
from fine_core.initializers.fine.learngene import Learngene
from trainables.initializations.fine import FineRecipe
from trainables.initializations.given import GivenRecipe
from trainables.initializations.scratch import ScratchRecipe
from trainables.specs.base import SourceSpec
from trainables.specs.models import FineSpec, GivenSpec, LearngeneSpec, TrialSpec
from trainables.training.loop import Recipe

INITIALIZATIONS = ("fine", "scratch", "given")


def recipe_for(trial: TrialSpec, load: Callable[[LearngeneSpec | SourceSpec], Learngene | DiT]) -> Recipe:
    """The recipe of a trial; a learngene or a given model is loaded only where one is needed."""
    if isinstance(trial.initialization, FineSpec):
        return FineRecipe(trial, load(trial.initialization.learngene))
    if isinstance(trial.initialization, GivenSpec):
        return GivenRecipe(load(trial.initialization.source))
    return ScratchRecipe(trial)
