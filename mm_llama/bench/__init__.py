"""Measurements of speed: each module has a `main(argv)` that `mm-llama bench NAME` calls."""
