"""Any source of weather data, as frames in the project's order, units and types.

Read sources.py (what a source is), then what it is opened from: formats.py with grib.py and netcdf3.py. parts.py makes
one part of each variable of each file, with names.py, coordinates.py and times.py; selection.py chooses channels and
static fields, series.py is a variable over time and reads it.
"""
