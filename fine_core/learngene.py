"""Public names of FINE: `Learngene.load(path).assemble(ModelSize(...))`, then `merge`."""

from fine_core.initializers.fine.factorized import merge
from fine_core.initializers.fine.learngene import Learngene

__all__ = ["Learngene", "merge"]
