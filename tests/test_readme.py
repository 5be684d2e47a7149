"""Every command that the README and the configs' headers show is one that the programs accept."""

import importlib
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


def check_accepted(command: str) -> None:
    """Parses the arguments as the program does: argparse's parser in this process, absl's flags in one of their own."""
    module, arguments = program(command)
    loaded = importlib.import_module(module)
    if hasattr(loaded, "make_parser"):
        loaded.make_parser().parse_args(arguments)
        return
    parse = f"import sys, {module}; from absl import flags; flags.FLAGS(sys.argv)"
    run = subprocess.run(
        [sys.executable, "-c", parse, *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("command", commands(shell_blocks(README)))
def test_the_programs_accept_the_readmes_commands(command):
    check_accepted(command)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_programs_accept_the_commands_in_the_configs_headers(config):
    for command in commands(config.read_text().split('"""')[1]):
        check_accepted(command)


def test_two_commands_set_everything_up():
    """One line installs and trains, one installs and tests: .ci/run takes them from here."""
    blocks = shell_blocks(README).splitlines()
    assert sum("pip install -e . && python -m experiments.train" in line for line in blocks) == 1
    assert sum('pip install -e ".[test]" && pytest' in line for line in blocks) == 1


def test_files_that_the_readme_names_are_there():
    for name in re.findall(r"`((?:experiments|weathermixer|launch|tests)/[\w./]+\.\w+|\.ci/run)`", README):
        assert (ROOT / name).exists(), name
