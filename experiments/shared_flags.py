"""The flags that several programs have: absl knows a name once, however many of them a process imports."""

from absl import flags
from ml_collections import config_flags

from weathermixer.runs.settings import Settings, make_settings

CONFIG = config_flags.DEFINE_config_file("config", None, "the run's config file, one of experiments/configs")
DATA = flags.DEFINE_string(
    "data",
    None,
    "archive made by experiments.prepare; default: to train, the config's own data; to plan or compare, made-up fields",
)
GRID = flags.DEFINE_list(
    "grid", None, "without --data: degrees between grid points, such as 0.25, or latitudes,longitudes, such as 64,128"
)


def read_settings() -> Settings:
    """The checked settings that --config describes; ValueError that names a field or value that cannot be."""
    return make_settings(CONFIG.value.to_dict())


def find_grid(default: tuple[int, int]) -> tuple[int, int]:
    """(lat, lon) points of --grid, or the default where there is none; ValueError where they are not whole numbers."""
    if GRID.value is None:
        return default
    try:
        numbers = [float(word) for word in GRID.value]
        lat, lon = numbers if len(numbers) == 2 else (180 / sum(numbers), 360 / sum(numbers))
    except (ValueError, ZeroDivisionError):
        lat, lon = 0.0, 0.0
    if len(GRID.value) > 2 or min(lat, lon) < 1 or abs(lat - round(lat)) + abs(lon - round(lon)) > 1e-6:
        given = ",".join(GRID.value)
        raise ValueError(f"grid={given} is not degrees that divide 180, such as 0.25, or latitudes,longitudes: 64,128")
    return round(lat), round(lon)
