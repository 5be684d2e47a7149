"""A source to an archive: checked, packed, written in shards, with its statistics.

Read prepare.py, then sizes.py (what will be made), shards.py (a task makes some) and workers.py (who runs tasks), with
statistics.py, normals.py and writer.py.
"""
