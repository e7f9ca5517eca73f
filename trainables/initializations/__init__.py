"""Ways to start a base model, one file each: a recipe for the training loop behind the spec of the same name."""

from __future__ import annotations

from collections.abc import Callable

from fine_core.learngene import Learngene
from trainables.initializations.fine import FineRecipe
from trainables.initializations.scratch import ScratchRecipe
from trainables.loop import Recipe
from trainables.spec import FineSpec, LearngeneSpec, TrialSpec

INITIALIZATIONS = ("fine", "scratch")


def recipe_for(trial: TrialSpec, load_learngene: Callable[[LearngeneSpec], Learngene]) -> Recipe:
    """The recipe of a trial; a learngene is loaded only where one is needed."""
    if isinstance(trial.initialization, FineSpec):
        return FineRecipe(trial, load_learngene(trial.initialization.learngene))
    return ScratchRecipe(trial)
