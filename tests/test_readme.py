"""What the README, docs/ and the configs' headers show is true: commands are accepted, links and files are there.

A command is a line of a ```bash block, or inline code, that calls a program of this project.
"""

import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import zarr

from experiments import command_line, plan, prepare
from weathermixer.fields.variables import ERA5_STATIC, ERA5_SURFACE, ERA5_UPPER, LEVELS_HPA, VARIABLES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
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
    blocks = shell_blocks(README).splitlines()
    assert sum("pip install -e . && python -m experiments.train" in line for line in blocks) == 1
    assert sum('pip install -e ".[test]" && pytest' in line for line in blocks) == 1


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 150


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
    assert not [page.name for page in PAGES[1:] if page.name not in README]


def test_modules_in_the_table_of_references_are_there():
    for name in re.findall(r"`(\w+/\w+\.py)`", (ROOT / "docs/references.md").read_text()):
        assert (ROOT / "weathermixer" / name).exists(), name


@pytest.fixture
def era5(tmp_path, monkeypatch):
    """A folder to be in, with era5.zarr of 1980 to 2018 at 0.25 degrees as public ones are, but without a chunk."""
    monkeypatch.chdir(tmp_path)
    group = zarr.open_group("era5.zarr", mode="w", zarr_format=3)
    times = np.arange("1980-01-01", "2019-01-01", 6, "datetime64[h]").astype(np.int64)
    axes = {
        "time": (times, {"units": "hours since 1970-01-01", "calendar": "proleptic_gregorian"}),
        "level": (np.array(sorted(LEVELS_HPA)), {"units": "hPa"}),
        "latitude": (np.linspace(90, -90, 721), {"units": "degrees_north"}),
        "longitude": (np.arange(1440) / 4, {"units": "degrees_east"}),
    }
    for name, (values, about) in axes.items():
        group.create_array(name, data=values, dimension_names=[name], attributes=about)
    for names, dims in ((ERA5_SURFACE, "tyx"), (ERA5_UPPER, "tlyx"), (ERA5_STATIC, "yx")):
        dims = [dict(zip("tlyx", axes))[dim] for dim in dims]
        shape = tuple(len(axes[dim][0]) for dim in dims)
        for name in names:
            about = {"units": VARIABLES[name].units}
            options = dict(chunks=(1, *shape[1:]) if "time" in dims else shape, dimension_names=dims, attributes=about)
            group.create_array(name, shape=shape, dtype="float32", **options)


def test_cheap_commands_run(era5, capsys):
    """Plans, the scaling figure and dry runs, all that the pages show."""
    ran = 0
    for module, shown in SHOWN.items():
        for arguments in shown:
            planned = module in ("experiments.plan", "experiments.benchmark.scaling")
            costly = [word for word in arguments if word.startswith(("--compile", "--validate", "--transfers"))]
            if "--dry-run" in arguments or (planned and not costly):
                importlib.import_module(module).main(arguments)  # raises or exits where something is wrong
                assert capsys.readouterr().out
                ran += 1
    assert ran >= 8


def test_what_era5_takes_is_what_the_programs_say(era5, capsys):
    """The front page's table: bytes by the dry run, hours for 100 epochs of 1980 to 2016 by the fastest plans."""
    row = {
        cells[1].strip(): cells[3:5] for cells in (line.split("|") for line in README.splitlines()) if len(cells) == 6
    }
    (dry_run,) = (
        arguments
        for arguments in SHOWN["experiments.prepare"]
        if "--domain=8" in arguments and "--dry-run" in arguments
    )
    prepare.main(dry_run)
    printed = capsys.readouterr().out
    for what, pattern in (
        ("read from the source, once", r"reading +(\S+ TB)"),
        ("archive on disk", r"float16, (\S+ TB)"),
    ):
        assert {cell.strip() for cell in row[what]} == {re.search(pattern, printed)[1]}
    pairs = 37 * 365 * 4 + 10 * 4 - 1  # ten leap years
    for cell, size, devices in zip(row["100 epochs of 1980 to 2016"], ("reference", "reference:3.2b"), (8, 64)):
        plan.main([f"--config={size}", f"--devices={devices}", "--device=h200", "--json=plans.json"])
        best = json.loads(Path("plans.json").read_text())["plans"][0]
        hours = 100 * pairs / best["samples_per_s"] / 3600
        assert cell.strip() == f"{devices} H200: {int(hours)} h, {devices * hours:.0f} GPU hours"
