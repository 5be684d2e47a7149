"""The words of the atmosphere: regular grids with their cells' weights, and variables, levels and channels.

Read grid.py, then variables.py. Everything else speaks in these words; nothing here knows devices or files.
"""
