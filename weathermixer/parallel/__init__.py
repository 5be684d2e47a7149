"""The mesh of devices, and the one operation that mixes across it.

Read mesh.py first: its table says how every named dimension is cut. Then schedule.py (what a contraction moves, in
closed form) and jigsaw.py (the contraction). zero.py cuts what training carries over the instances too, distributed.py
joins processes into a run.
"""
