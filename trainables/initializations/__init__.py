"""Ways to start a base model, one file each: a recipe for the training loop behind the spec of the same name."""

from __future__ import annotations

from collections.abc import Callable

from fine_core.dit import DiT
from fine_core.initializers.fine.learngene import Learngene
from trainables.initializations.fine import FineRecipe
from trainables.initializations.given import GivenRecipe
from trainables.initializations.scratch import ScratchRecipe
from trainables.specs.base import SourceSpec
from trainables.specs.models import BaseModelSpec, FineSpec, GivenSpec, LearngeneSpec
from trainables.training.loop import Recipe

INITIALIZATIONS = ("fine", "scratch", "given")


def recipe_for(job: BaseModelSpec, load: Callable[[LearngeneSpec | SourceSpec], Learngene | DiT]) -> Recipe:
    """The recipe of a trial; a learngene or a given model is loaded only where one is needed."""
    if isinstance(job.initialization, FineSpec):
        return FineRecipe(job, load(job.initialization.learngene))
    if isinstance(job.initialization, GivenSpec):
        return GivenRecipe(load(job.initialization.source))
    return ScratchRecipe(job)
