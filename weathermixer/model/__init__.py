"""The model: from fields on the grid to the fields a step later.

Read shape.py (sizes) and weathermixer.py, then mixer.py (a block), layers.py (dense layers and norms on cut arrays),
heads.py, patching.py; elementwise.py has GELU and normalization with backward passes of their own.
"""
