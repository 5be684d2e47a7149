"""Every command that the README and the configs' headers show is one that the programs accept."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "experiments/configs").glob("*.py"))


def commands(text: str) -> list[str]:
    """Lines that call a program of this project; a backslash continues a line."""
    lines = text.replace("\\\\\n", " ").replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.search(r"python -m experiments\.|slurm\.sbatch --", line)]


def program(command: str) -> tuple[str, list[str]]:
    """The module and the arguments that a command line gives it."""
    words = shlex.split(command, comments=True)
    words = words[words.index("&&") + 1 :] if "&&" in words else words
    if "launch/slurm.sbatch" in words:
        return "experiments.train", words[words.index("launch/slurm.sbatch") + 1 :]
    start = words.index("-m") + 1
    return words[start], words[start + 1 :]


def shell_blocks(text: str) -> str:
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


# Imports a program once, then parses each list of arguments in a child of its own: absl's flags cannot be parsed twice.
PARSE_FLAGS = """
import importlib, json, os, sys
from absl import flags
module, shown = sys.argv[1:]
importlib.import_module(module)
for arguments in json.loads(shown):
    if os.fork() == 0:
        sys.argv = [module, *arguments]  # where ml_collections looks for changes of the config's fields
        flags.FLAGS(sys.argv)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"{module} does not accept {arguments}")
"""

SHOWN: dict[str, list[list[str]]] = {}
for _text in (shell_blocks(README), *(config.read_text().split('"""')[1] for config in CONFIGS)):
    for _module, _arguments in map(program, commands(_text)):
        SHOWN.setdefault(_module, []).append(_arguments)


@pytest.mark.parametrize("module", sorted(SHOWN))
def test_the_programs_accept_the_commands_shown(module):
    """Those of the README and of the configs' headers, parsed as the program does it."""
    source = Path(importlib.util.find_spec(module).origin)
    if "def make_parser(" in source.read_text():
        parser = importlib.import_module(module).make_parser()
        for arguments in SHOWN[module]:
            parser.parse_args(arguments)
        return
    run = subprocess.run(
        [sys.executable, "-c", PARSE_FLAGS, module, json.dumps(SHOWN[module])],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_shows_a_command_that_uses_it(config):
    """base.py is no run of its own; __init__.py says what the folder is."""
    header = config.read_text().split('"""')[1]
    uses = f"--config=experiments/configs/{config.name}"
    assert config.stem in ("base", "__init__") or any(uses in command for command in commands(header))


def test_two_commands_set_everything_up():
    """One line installs and trains, one installs and tests: .ci/run takes them from here."""
    blocks = shell_blocks(README).splitlines()
    assert sum("pip install -e . && python -m experiments.train" in line for line in blocks) == 1
    assert sum('pip install -e ".[test]" && pytest' in line for line in blocks) == 1


def test_files_that_the_readme_names_are_there():
    for name in re.findall(r"`((?:experiments|weathermixer|launch|tests)/[\w./]+\.\w+|\.ci/run)`", README):
        assert (ROOT / name).exists(), name
