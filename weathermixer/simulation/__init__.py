"""A dry atmosphere for a first run without a download, simulated by the spectral core of `dinosaur`.

Read simulate.py (the record and the ensemble of processes) and atmosphere.py (the physics, and one member).
"""
