"""Any source of weather data, as frames in the project's order, units and types.

Read sources.py (what a source is), then what it is opened from: formats.py with grib.py and netcdf3.py. parts.py makes
one part of each variable of each file, with names.py, coordinates.py, times.py and orientation.py for rows and columns;
selection.py chooses channels, series.py is a variable over time and reads it, static.py what does not change.
"""
