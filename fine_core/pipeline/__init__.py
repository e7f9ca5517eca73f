"""Parts of a diffusers pipeline. They need diffusers when they are imported, which the rest of fine_core does not."""
