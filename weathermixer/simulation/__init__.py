"""A dry atmosphere for a first run without a download, simulated by the spectral core of `dinosaur`.

Read simulate.py (the ensemble of processes), then atmosphere.py and climate.py (the physics), member.py and record.py.
"""
