"""From a trained model to forecasts of many steps and their files.

Read rollout.py, then forecasts.py.
"""
