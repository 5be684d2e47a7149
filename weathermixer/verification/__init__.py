"""How good forecasts are: the field's scores beside persistence and climatology, tables and maps.

Read statistics.py (of single forecasts), metrics.py (of their means), regions.py, evaluation.py with table.py,
climatologies.py (what forecasts are measured against), significance.py, scores.py, figures.py and charts.py.
"""
