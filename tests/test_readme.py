"""What the README, docs/ and the configs' headers show is true: commands are accepted, links and files are there.

A command is a line of a ```bash block, or inline code, that calls a program of this project.
"""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from experiments import command_line

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "experiments/configs").glob("*.py"))
PROGRAM = r"python -m experiments\.|slurm\.sbatch --"


def shell_blocks(text: str) -> str:
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


def commands(text: str) -> list[str]:
    """Lines that call a program of this project; a backslash continues a line."""
    lines = text.replace("\\\\\n", " ").replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.search(PROGRAM, line)]


def page_commands(text: str) -> list[str]:
    """Those of a page's shell blocks and of its inline code; `python -m experiments.NAME` alone names a program."""
    inline = re.findall(r"`([^`\n]*python -m experiments\.[a-z][^`\n]*)`", re.sub(r"(?ms)^```.*?^```", "", text))
    return commands(shell_blocks(text)) + inline


def programs(command: str) -> list[tuple[str, list[str]]]:
    """The modules and the arguments that a command line gives them, one for each program that && joins."""
    found = []
    for part in re.split(r" && ", command):
        words = shlex.split(part, comments=True)
        if "launch/slurm.sbatch" in words:
            found.append(("experiments.train", words[words.index("launch/slurm.sbatch") + 1 :]))
        elif re.search(PROGRAM, part):
            start = words.index("-m") + 1
            found.append((words[start], words[start + 1 :]))
    return found


SHOWN: dict[str, list[list[str]]] = {}
for _found in (
    *(page_commands(page.read_text()) for page in PAGES),
    *(commands(config.read_text().split('"""')[1]) for config in CONFIGS),
):
    for _module, _arguments in (program for command in _found for program in programs(command)):
        if _module == "experiments.benchmark" and _arguments:
            _module, _arguments = f"{_module}.{_arguments[0]}", _arguments[1:]
        if _arguments not in SHOWN.setdefault(_module, []):
            SHOWN[_module].append(_arguments)


@pytest.mark.parametrize("module", sorted(SHOWN))
def test_the_programs_accept_the_commands_shown(module):
    """Those of the pages and of the configs' headers, parsed as the program does it, with the fields of configs."""
    program = importlib.import_module(f"{module}.__main__" if module == "experiments.benchmark" else module)
    for arguments in SHOWN[module]:
        options = program.make_parser().parse_args(arguments)
        if getattr(options, "config", None):
            command_line.read_settings(options)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_shows_a_command_that_uses_it(config):
    """base.py is no run of its own; __init__.py says what the folder is."""
    header = config.read_text().split('"""')[1]
    uses = f"--config={config.stem} "
    assert config.stem in ("base", "__init__") or any(uses in command for command in commands(header))


def test_two_commands_set_everything_up():
    """One line installs and trains, one installs and tests: .ci/run takes them from here."""
    blocks = shell_blocks(PAGES[0].read_text()).splitlines()
    assert sum("pip install -e . && python -m experiments.train" in line for line in blocks) == 1
    assert sum('pip install -e ".[test]" && pytest' in line for line in blocks) == 1


def test_the_front_page_is_short():
    assert len(PAGES[0].read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_and_named_files_are_there(page):
    """Links to pages and their headings, pictures, files and folders in code, and tests by name."""
    text = page.read_text()
    for target in re.findall(r"\]\(([^)]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        path, _, heading = "".join(target).partition("#")
        if path.startswith(("https://", "mailto:")):
            continue
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name} links to {path}"
        headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE) if heading else []
        slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
        assert not heading or heading in slugs, f"{page.name} links to {path}#{heading}"
    folders = "experiments|weathermixer|launch|tests|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./]+\.\w+|(?:{folders})/[\w/]*|\.ci/run)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"
    for name, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        assert re.search(rf"^def {test}\(", (ROOT / name).read_text(), re.MULTILINE), (
            f"{page.name} names {name}::{test}"
        )


def test_every_page_is_linked_from_the_front_page():
    front = PAGES[0].read_text()
    assert not [page.name for page in PAGES[1:] if page.name not in front]


def test_modules_in_the_table_of_references_are_there():
    for name in re.findall(r"`(\w+/\w+\.py)`", (ROOT / "docs/references.md").read_text()):
        assert (ROOT / "weathermixer" / name).exists(), name
