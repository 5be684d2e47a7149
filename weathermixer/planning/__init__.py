"""What a training step costs, before it runs and read out of the compiled program.

Closed formulae in plain Python, so that a plan for 1024 GPUs takes milliseconds: work.py (parameters, products),
memory.py (bytes a device holds), traffic.py (bytes it exchanges), time.py (what a step takes, beside
steps that were timed), on the machines of hardware.py; plan.py judges meshes. account.py and hlo.py read the same
things out of real programs, baselines.py has what other ways of spreading a step cost.
"""
