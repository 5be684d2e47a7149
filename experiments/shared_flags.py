"""The flags that several programs have: absl knows a name once, however many of them a process imports."""

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "the run's config file, one of experiments/configs")
DATA = flags.DEFINE_string(
    "data",
    None,
    "archive made by experiments.prepare; default: to train, the config's own data; to plan or compare, made-up fields",
)
