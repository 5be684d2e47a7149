"""A dry atmosphere for a first run without a download, simulated by the spectral core of `dinosaur`.

Read simulate.py (the ensemble of processes), member.py and record.py, then atmosphere.py and climate.py (the physics).
"""
