"""Benchmarks: reading, the training step, and a step's cost over meshes. Run python -m experiments.benchmark."""
