"""Public names of FINE: `Learngene.load(path).assemble(ModelSize(...))`, then `merge`."""

from fine_core.initializers.fine.learngene import Learngene
from fine_core.initializers.rebuilt import merge

__all__ = ["Learngene", "merge"]
