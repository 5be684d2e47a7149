"""Any source of weather data to an archive, in one pass.

Read sources.py (what a source is) with formats.py, names.py, orientation.py, series.py and selection.py below it; then
prepare.py with sizes.py, shards.py, checks.py, statistics.py, normals.py, writer.py and journal.py.
"""
