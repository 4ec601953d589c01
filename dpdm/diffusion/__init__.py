"""The paper's method: a diffusion model trained by DP-SGD with noise multiplicity (Dockhorn et al. 2022)."""
