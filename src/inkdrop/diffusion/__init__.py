"""The mathematics of diffusion: no network, no files, no command line."""
