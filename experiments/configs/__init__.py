"""Configs by name or path: base documents every field; the others are base.get_config() plus their differences."""

import difflib
import importlib.util
import pathlib
import traceback

from ml_collections import ConfigDict

CONFIGS = pathlib.Path(__file__).parent


def config_names() -> list[str]:
    """The configs that are part of the software; base is what they start from."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in ("__init__", "base"))


def load_config(name: str) -> ConfigDict:
    """The config that a name (quickstart, reference:3.2b) or the path of a file (own.py, own.py:ARGUMENT) stands for.

    Raises ValueError, with file and line, for a config that is not there or does not work.
    """
    where, _, argument = name.partition(":")
    path = _find_config(where)
    try:
        spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = module.get_config(argument) if argument else module.get_config()
    except Exception as error:  # a file of the user's may raise anything
        lines = [f", line {f.lineno}" for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        place = "" if isinstance(error, SyntaxError) else f"{path}{(lines or [''])[-1]}: "  # which it says itself
        raise ValueError(f"--config={name}: {place}{type(error).__name__}: {error}") from error
    if not isinstance(found, ConfigDict):
        raise ValueError(f"--config={name}: get_config() in {path} returns {type(found).__name__}, not a ConfigDict")
    return found


def _find_config(where: str) -> pathlib.Path:
    path, names = pathlib.Path(where).expanduser(), config_names()
    if path.suffix == ".py" and path.is_file():
        return path.resolve()
    if path.parts[-3:-1] in ((), ("experiments", "configs")) and path.stem in (*names, "base"):
        return CONFIGS / f"{path.stem}.py"  # a name, or the file of a checkout that is elsewhere
    if pathlib.Path(f"{path}.py").is_file():
        hint = f"did you mean {path}.py?"
    else:
        near = difflib.get_close_matches(path.stem, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"give {', '.join(names)} or the path of a file"
    raise ValueError(f"--config={where}: there is no such config: {hint}")
