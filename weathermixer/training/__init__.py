"""What a training run is made of: loss, optimizer, state, step, checkpoints and log.

Read steps.py with losses.py and state.py, then optimizer.py, checkpoint.py and telemetry.py. The loop
itself is experiments/stage.py.
"""
