"""Parts of a diffusers pipeline. Only these modules import diffusers when they are imported."""
