"""Any source of weather data, as frames in the project's order, units and types.

Read sources.py (what a source is), then what it is opened from: formats.py with grib.py, netcdf3.py and remote.py.
parts.py makes one part of each variable of each file, with names.py, coordinates.py and times.py; selection.py chooses
channels, orientation.py turns rows and columns, series.py is a variable over time, reading.py reads it, static.py what
does not change.
"""
