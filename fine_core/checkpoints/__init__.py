"""Models on disk in three formats: this project's, the public DiT code's and diffusers'."""

from fine_core.checkpoints.diffusers_folder import export_diffusers
from fine_core.checkpoints.native import CheckpointError, load_model, save_model

__all__ = ["CheckpointError", "export_diffusers", "load_model", "save_model"]
