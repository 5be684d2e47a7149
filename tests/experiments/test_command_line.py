"""How programs speak: --help with an example, bad input in one line, configs by name from any folder."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import command_line, ends
from experiments.benchmark.__main__ import BENCHMARKS

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = [
    *sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if "ends.run(main)" in p.read_text()),
    *(f"benchmark.{name}" for name in ("__main__", *BENCHMARKS)),
]
TRAIN = ["--config=quickstart", "--workdir=run"]

OWN = """
from experiments.configs import base
def get_config(blocks="3"):
    config = base.get_config()
    config.model.blocks = int(blocks)
    {line}
    return config
"""


def program(name):
    return importlib.import_module(f"experiments.{name}")


def end(capsys, name, arguments):
    """(status, the line on stderr) of a program that bad input ends."""
    status = ends.call(program(name).main, arguments)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith("\n"), error
    assert error.startswith(name.split(".")[0]) and status in (1, 2)
    return status, error


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_shows_an_example_and_ends_well(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        program(name).main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    example = "python -m experiments." + name.removesuffix(".__main__").replace(".", " ")
    assert example in printed.partition("options:")[2]
    assert "config.model" not in printed.partition("options:")[0]  # the fields would fill a page


@pytest.mark.parametrize("name", PROGRAMS)
def test_options_have_dashes(name):
    options = [option for action in program(name).make_parser()._actions for option in action.option_strings]
    assert not [option for option in options if "_" in option and not option.startswith("--config.")]


def test_values_may_be_words_of_their_own():
    for levels in (["850,500"], ["850", "500"]):
        options = program("prepare").make_parser().parse_args(["a.nc", "dest", "--levels", *levels])
        assert options.levels_hpa == (850, 500)
    options = program("prepare").make_parser().parse_args(["--variables", "z,t", "a.nc", "b.nc", "dest"])
    assert options.source == ["a.nc", "b.nc"] and options.dest == "dest" and options.variables == ("z", "t")


@pytest.mark.parametrize(
    ("name", "arguments", "status", "message"),
    [
        ("train", ["--workdir=run"], 2, "required: --config"),
        ("train", [*TRAIN, "one"], 2, "'one' is one word too many: lists are written with commas"),
        ("plan", ["--config=reference", "--devices", "8", "16"], 2, "'16' is one word too many"),
        ("prepare", ["a.nc", "o", "--dry-runs"], 2, "--dry-runs is not an option: did you mean --dry-run?"),
        ("prepare", ["a.nc", "o", "--dry_run"], 2, "--dry_run is not an option: did you mean --dry-run?"),
        ("prepare", ["a.nc", "o", "--domain", "8", "4"], 2, "'4' is one word too many: lists are written with"),
        ("train", [*TRAIN, "--config.model.blokcs=2"], 2, "is not an option: did you mean --config.model.blocks?"),
        ("train", [*TRAIN, "--config.model.blocks=0"], 1, "config.model.blocks=0: input should be greater"),
        ("train", [*TRAIN, "--config.model.blocks=two"], 1, "blocks='two': input should be a valid integer"),
        ("train", [*TRAIN, "--config.model.patch=(0,4)"], 1, "model.patch[0]=0: input should be greater"),
        ("train", [*TRAIN, "--config.evaluation.final=maybe"], 1, "final='maybe': input should be a valid boolean"),
        ("train", [*TRAIN, "--config.data.test=2001-13-01,2002"], 1, "'2001-13-01,2002' is not a first"),
        ("train", ["--workdir=run", "--config=quikstart"], 1, "no such config: did you mean quickstart?"),
        ("train", ["--workdir=run", "--config=no/own.py"], 1, "no such config: give era5_djf, gfs_wind"),
        ("train", ["--workdir=run", "--config=."], 1, "--config=.: there is no such config"),
        ("train", ["--workdir=run", "--config=reference:5b"], 1, "size '5b' is not one of 1b, 3.2b, 10b"),
        ("train", ["--workdir=run", "--config=era5_djf:big"], 1, "get_config() takes 0 positional arguments"),
        ("train", ["run", *TRAIN], 2, "'run' is one word too many"),
        ("prepare", ["a.nc", "dest", "--period=2000-13-01,2001"], 2, "--period: '2000-13-01,2001' is not a first"),
        ("prepare", ["a.nc", "dest", "--select=number"], 2, "--select: 'number' is not NAME=VALUE"),
        ("prepare", ["a.nc", "dest", "--coarsen=0"], 2, "--coarsen: '0': give an integer of at least 1"),
        ("evaluate", ["nowhere"], 1, "nowhere holds no run"),
        ("evaluate", ["w", "--leads=6;24"], 2, "--leads: '6;24': give positive integers with commas"),
        ("evaluate", ["w", "--mesh=2,2"], 2, "--mesh: '2,2': give three integers, data,domain,tensor"),
        ("evaluate", ["w", "--mesh=1,0,1"], 2, "--mesh: '1,0,1': give three integers"),
        ("forecast", ["w", "--start=yesterday"], 2, "--start: 'yesterday': give times"),
        ("forecast", ["w", "--mode=both"], 2, "--mode: invalid choice: 'both'"),
        ("check", ["a", "--config.mesh.data=2"], 2, "--config.mesh.data is a field of a config: give --config"),
        ("plan", [], 2, "--config says which model to plan"),
        ("plan", ["--config=reference", "--grid=0.7"], 2, "--grid: '0.7': give degrees that divide 180"),
        ("plan", ["--config=reference", "--hardware=read_rate"], 2, "--hardware: 'read_rate' is not NAME=VALUE"),
        ("plan", ["--config=reference", "--hardware=read_rate=x"], 2, "'read_rate=x' is not NAME=NUMBER"),
        ("plan", ["--config=reference", "--hardware=speed=3"], 1, "hardware has no field ['speed']"),
        ("plan", ["--config=reference", "--devices=0"], 2, "--devices: '0': give an integer of at least 1"),
        ("plan", ["--config=reference", "--json=no/plans.json"], 2, "--json: 'no/plans.json': there is no folder no"),
        ("plan", ["--config=reference", "--json=."], 2, "--json: '.' is a folder: give a file"),
        ("evaluate", ["run", "--output=."], 2, "--output=. is a folder"),
        ("evaluate", ["run", "--output=a.nc"], 2, "--output=a.nc is a folder, or where netCDF goes beside JSON"),
        ("parity", ["--config=quickstart", "--mesh=1,3,1"], 1, "not divisible by domain=3"),
        ("plan", ["--transfers=nowhere.hlo"], 1, "No such file or directory: 'nowhere.hlo'"),
        ("benchmark.__main__", ["speed"], 2, "invalid choice: 'speed' (choose from"),
        ("benchmark.prepare", ["--workers=1,0"], 2, "--workers: '1,0': give positive integers"),
        ("benchmark.train", ["--steps=0"], 2, "--steps: '0': give an integer of at least 1"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_one_line(name, arguments, status, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, error = end(capsys, name, arguments)
    assert found == status and message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.data.trian = ('2000', '2001')", "config.data.trian is not a field"),
        ("config.model.blocks = 0", "config.model.blocks=0: input should be greater"),
        ("config.model.blocks = config.model.blokcs", "own.py, line 6: AttributeError: "),
        ("config.model.blocks = (", "own.py: SyntaxError: '(' was never closed (own.py, line 6)"),
        ("return 3", "returns int, not a ConfigDict"),
        ("import nothing_of_that_name", "own.py, line 6: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    ],
)  # fmt: skip
def test_a_config_of_ones_own_is_checked_like_a_flag(line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN.format(line=line))
    _, error = end(capsys, "train", ["--config=own.py", "--workdir=run"])
    assert message in error
    assert not Path("run").exists()


def test_a_config_without_its_py_is_found_out(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN.format(line=""))
    assert "did you mean own.py?" in end(capsys, "train", ["--config=own", "--workdir=run"])[1]
    Path("empty.py").write_text("x = 1\n")
    assert "no attribute 'get_config'" in end(capsys, "train", ["--config=empty.py", "--workdir=run"])[1]


def settings(*arguments):
    parser = command_line.make_parser("experiments.test", "A test.")
    command_line.add_config(parser)
    return command_line.read_settings(parser.parse_args(arguments))


def test_configs_by_name_or_path_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = settings("--config=quickstart")
    assert small.data.source == "simulated"
    for path in ("experiments/configs/quickstart.py", str(ROOT / "experiments/configs/quickstart.py"), "quickstart.py"):
        assert settings(f"--config={path}") == small
    assert settings("--config=reference:3.2b").model.embed == 14336
    assert settings("--config=experiments/configs/reference.py:10b").model.blocks == 6
    Path("own.py").write_text(OWN.format(line="config.seed = 7"))
    assert settings("--config=own.py:5").model.blocks == 5 and settings("--config", "own.py").seed == 7
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings("--config=~/own.py").model.blocks == 3


def test_fields_of_a_config_are_options_of_every_kind():
    changes = ["--config.model.patch=2,4", "--config.data.channels=a,b", "--config.data.train=2000,2001-06-30"]
    changes += ["--config.evaluation.lead_hours=24", "--config.evaluation.final=false", "--config.training.epochs=3"]
    changes += ["--config.optimizer.peak_rate", "1e-4", "--config.data.source=$HOME/x=y.zarr"]
    found = settings("--config=quickstart", *changes, "--config.data.static=")
    assert found.model.patch == (2, 4) and found.data.channels == ("a", "b") and found.data.static == ()
    assert found.data.train == ("2000", "2001-06-30") and found.evaluation.lead_hours == (24,)
    assert found.evaluation.final is False and found.training.epochs == 3.0 and found.optimizer.peak_rate == 1e-4
    assert found.data.source == "$HOME/x=y.zarr"
    assert settings("--config=quickstart", "--config.model.patch=(2, 4)", "--config.data.channels=('a',)").model.patch


def test_a_part_that_depends_on_a_field_follows_it(tmp_path):
    line = "config.model.token_hidden = config.model.get_ref('embed') * 2; config.model.embed = 8"
    (tmp_path / "own.py").write_text(OWN.format(line=line))
    assert settings(f"--config={tmp_path}/own.py", "--config.model.embed=16").model.token_hidden == 32


def test_values():
    assert command_line.mesh("-1,4,2") == (-1, 4, 2) and command_line.pair("8,2") == (8, 2)
    assert command_line.grid("0.25") == (720, 1440) and command_line.grid("32,64") == (32, 64)
    assert command_line.words("") == () and command_line.words("a, b") == ("a", "b")
    hours = np.datetime64("2000-01-01T06", "ns"), np.datetime64("2000-01-02", "ns")
    assert command_line.times("2000-01-01T06,2000-01-02") == hours


def test_where_it_was_raised_is_shown_when_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("WEATHERMIXER_TRACEBACK", "1")
    assert ends.call(program("train").main, ["--config=quikstart", "--workdir=run"]) == 1
    assert re.search(r"(?s)^Traceback.*in _find_config.*ValueError: .*no such config", capsys.readouterr().err)


def test_a_fault_of_ours_has_a_traceback_and_a_status_of_its_own(capsys):
    def main(arguments):
        return {}[arguments]

    assert ends.call(main, "no such key") == 70
    assert capsys.readouterr().err.splitlines()[-1] == "KeyError: 'no such key'"


def test_an_interrupt_is_said_in_a_line_and_recorded(tmp_path, capsys):
    def main(arguments):
        with ends.failing(tmp_path):
            raise KeyboardInterrupt

    assert ends.call(main) == 130 and capsys.readouterr().err.endswith(": interrupted\n")
    ended = json.loads((tmp_path / "ended.json").read_text())
    assert (ended["how"], ended["status"], ended["why"]) == ("failed", 130, "interrupted")


def test_a_program_that_fails_waits_for_no_read_that_never_returns(tmp_path):
    (tmp_path / "program.py").write_text(
        "import threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from experiments import ends\n"
        "def main(arguments):\n"
        "    ThreadPoolExecutor(1).submit(threading.Event().wait)\n"
        "    raise ValueError('no such thing')\n"
        "ends.run(main)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = [sys.executable, "-m", "program"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (1, "program: no such thing\n")


def test_a_program_whose_reader_has_gone_ends_without_a_word(tmp_path, capsys):
    """Found where it prints on the way, at its end, and by the parser's end; other broken pipes are said."""
    (tmp_path / "program.py").write_text(
        "from experiments import command_line, ends\n"
        "def main(arguments):\n"
        "    parser = command_line.make_parser('experiments.program', None)\n"
        "    parser.add_argument('--lines', type=int)\n"
        "    for number in range(parser.parse_args(arguments).lines):\n"
        "        print(number)\n"
        "ends.run(main)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONUNBUFFERED": ""}
    reader, writer = os.pipe()
    os.close(reader)
    streams = dict(stdout=writer, stderr=subprocess.PIPE, text=True)
    for option in ("--lines=100000", "--lines=1", "--help"):
        run = subprocess.run([sys.executable, "-m", "program", option], env=environment, timeout=60, **streams)
        assert (run.returncode, run.stderr) == (141, ""), option
    os.close(writer)
    command = ["bash", "-c", f"{sys.executable} -m program --lines=1 >&-"]  # no output at all, as of a service
    assert subprocess.run(command, env=environment, timeout=60, capture_output=True).returncode == 0

    def main(arguments):
        raise BrokenPipeError(32, "a worker's pipe broke")

    assert ends.call(main) == 1 and "a worker's pipe broke" in capsys.readouterr().err


def test_names_that_the_locale_cannot_say_are_refused():
    """TensorStore would write elsewhere than Python."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
    command = [
        sys.executable,
        "-c",
        "from experiments import command_line as c; c.make_parser('x', '').parse_args()",
        "ü",
    ]
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run(command, env=environment | plain, capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.endswith("set PYTHONUTF8=1 in the environment\n")
    assert run.stderr.count("\n") == 1
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "one word too many" in run.stderr
