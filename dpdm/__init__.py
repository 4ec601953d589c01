"""A reproducible benchmark around Differentially Private Diffusion Models. Importing this loads nothing else."""

__version__ = "0.1.0"
