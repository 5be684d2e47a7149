"""How good forecasts are: WeatherBench 2's scores beside persistence and climatology, tables and maps.

Read metrics.py, evaluation.py, climatologies.py (what forecasts are measured against), scores.py and figures.py.
"""
