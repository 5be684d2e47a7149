"""A run as an object: from its settings to data, model and training, and from its folder back to a model.

Read settings.py (every setting and what it may be), build.py, data.py, samples.py, then run.py; fork.py and
export.py are how a run leads to others.
"""
