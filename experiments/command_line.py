"""How programs read a command line: one way to write options, the options that several have, and errors in one line.

An option is --name=VALUE, its words joined by `-`; lists have commas between. A config's fields are options too,
--config.training.steps=200. Every program has make_parser(), and main(arguments) that ends.run calls. One file: what
an option's text means and the line that says why it means nothing are told together.
"""

import argparse
import ast
import difflib
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
from ml_collections import ConfigDict

from experiments import configs
from weathermixer.runs.settings import Settings, check_period, make_settings

MESH = "DATA,DOMAIN,TENSOR"


class Parser(argparse.ArgumentParser):
    """argparse's parser, but what is wrong is said in one line, with the option that may have been meant."""

    mappings: Sequence[str] = ()  # options that have options of their own: --config.loss.weights.2m_temperature=2

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{short_name(self.prog)}: {message.removeprefix('argument ')}\n")

    def parse_args(self, args=None, namespace=None):
        """As argparse's; exits with status 2 after one line where the arguments are not the program's."""
        args = sys.argv[1:] if args is None else args
        for text in (*args, os.getcwd()):
            if not text.isascii() and sys.getfilesystemencoding() != "utf-8":  # TensorStore names files in UTF-8
                self.error(f"{text!r} needs UTF-8 in this locale: set PYTHONUTF8=1 in the environment")
        options, unknown = self.parse_known_args(args, namespace)
        if any(not word.startswith("-") for word in unknown):  # of a list that was written without commas
            options, unknown = self.parse_known_args(self._join_lists(args), namespace)
        for word in unknown:
            name, _, text = word.partition("=")
            if name.rpartition(".")[0] in self.mappings:
                setattr(options, name.removeprefix("--"), _literal(text))
            elif name.startswith("-"):
                near = difflib.get_close_matches(name, self._option_string_actions, 1)
                hint = f"did you mean {near[0]}?" if near else "--help shows those that there are"
                self.error(f"{name} is not an option: {hint}")
            else:
                self.error(
                    f"{word!r} is one word too many: lists are written with commas, --name=A,B, "
                    "and a glob that means several files in quotes, 'era5_*.nc'"
                )
        if fields := [name for name in vars(options) if name.startswith("config.") and not options.config]:
            self.error(f"--{fields[0]} is a field of a config: give --config=NAME too")
        return options

    def _join_lists(self, args: Sequence[str]) -> list[str]:
        """--levels=850,500 for --levels 850 500."""
        joined: list[str] = []
        for word in args:
            name, equals, value = joined[-1].partition("=") if joined else ("", "", "")
            action = self._option_string_actions.get(name)
            if action is None or "," not in str(action.metavar) or word.startswith("-"):
                joined.append(word)
            else:
                joined[-1] = f"{name}={value},{word}" if equals else f"{name}={word}"
        return joined


def make_parser(program: str, doc: str | None) -> Parser:
    """A parser whose --help is a module's docstring, which shows examples, and the options."""
    description, _, rest = (doc or "").partition("\n\n")
    shape = argparse.RawDescriptionHelpFormatter
    return Parser(
        prog=f"python -m {program}", description=description, epilog=rest, formatter_class=shape, allow_abbrev=False
    )


def short_name(program: str) -> str:
    """train from python -m experiments.train"""
    return program.removeprefix("python -m ").removeprefix("experiments.").removesuffix(".__main__")


# What the values of options are. Each raises ArgumentTypeError, which argparse puts behind the option's name.


def _integers(pattern: str, wanted: str) -> Callable[[str], tuple[int, ...]]:
    """Reads integers that are written as `pattern`, in which P is a positive one."""
    pattern = pattern.replace("P", r"[1-9]\d*")

    def read(text: str) -> tuple[int, ...]:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r}: give {wanted}")
        return tuple(map(int, re.split("[,:]", text)))

    return read


integers = _integers("P(,P)*", "positive integers with commas between them, as 6,24,72")
pair = _integers("P,P", "two positive integers with a comma between them, as 8,2")
step_and_count = _integers("P:P", "a step and a number of steps, as 100:5")
mesh = _integers("(-1|P),P,P", "three integers, data,domain,tensor, as 1,4,2; data=-1 is as many as the devices hold")


def integer(least: int) -> Callable[[str], int]:
    """Reads an integer that is no less."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: give an integer of at least {least}")
        return int(text)

    return read


def positive(text: str) -> float:
    """Reads a finite number that is more than nothing."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of more than 0")
    return number


def grid(text: str) -> tuple[int, ...]:
    """(lat, lon) points from "64,128", or from degrees between them: "0.25"."""
    if "," in text:
        return pair(text)
    rows = 180 / positive(text)
    if rows < 1 or abs(rows - round(rows)) > 1e-6:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give degrees that divide 180, such as 0.25, or latitudes,longitudes: 64,128"
        )
    return round(rows), 2 * round(rows)


def words(text: str) -> tuple[str, ...]:
    """("a", "b") from "a,b"; nothing from an empty text."""
    return tuple(word.strip() for word in text.split(",")) if text.strip() else ()


def period(text: str) -> tuple[str, ...]:
    """(first, last) date, both inclusive, from "2018-01-01,2018-12-31"."""
    try:
        return check_period(words(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def times(text: str) -> tuple[np.datetime64, ...]:
    """Times from "2018-01-01T00,2018-01-01T12"."""
    try:
        found = tuple(np.datetime64(word, "ns") for word in words(text))
    except ValueError:
        found = (np.datetime64("NaT", "ns"),)
    if np.isnat(found).any():
        raise argparse.ArgumentTypeError(f"{text!r}: give times with commas between them, as 2018-01-01T00")
    return found


def pairs(text: str, name_of: Callable[[str], str] = lambda word: "") -> dict[str, str]:
    """{"number": "0"} from "number=0"; what stands without a name has that of `name_of`, if it has one."""
    found = {}
    for word in words(text):
        name, equals, value = word.partition("=")
        if not equals or "/" in name:
            name, value = name_of(word), word
        if not (name and value):
            raise argparse.ArgumentTypeError(f"{word!r} is not NAME=VALUE, such as number=0")
        if name in found:
            raise argparse.ArgumentTypeError(f"{text!r} has {name} twice: names have to differ, as A=VALUE,B=VALUE")
        found[name] = value
    return found


def output_file(text: str) -> pathlib.Path:
    """A file to write to, whose folder is there: said before the work, not after it."""
    path = pathlib.Path(text).expanduser()
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: there is no folder {path.parent}, make it first")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder: give a file")
    return path


# The options that several programs have.


def add_data(parser: argparse.ArgumentParser, about: str) -> None:
    """--data, which each program explains."""
    parser.add_argument("--data", metavar="ARCHIVE", help=f"archive made by experiments.prepare; {about}")


def add_readings(add: Callable[..., Any]) -> None:
    """--select, --rename and --units, where a source does not tell what it has as open_source wants it told."""
    about = "one entry of other dimensions: number=0; of a forecast's leads, in hours: step=6"
    add("--select", type=pairs, default={}, metavar="DIM=VALUE,...", help=about)
    about = "what the source calls NAME is a variable of WeatherBench 2's name: hgt=geopotential,T850=temperature_850"
    add("--rename", type=pairs, default={}, metavar="NAME=VARIABLE,...", help=about)
    about = "the unit of a variable or of levels where the source says none, or a wrong one: t2m=degC,lev=hPa"
    add("--units", type=pairs, default={}, metavar="NAME=UNIT,...", help=about)


def add_grid(parser: argparse.ArgumentParser, default: tuple[int, int]) -> None:
    """--grid, for fields that are made up."""
    about = f"of made-up fields: degrees, as 0.25, or latitudes,longitudes; default: {default[0]},{default[1]}"
    parser.add_argument("--grid", type=grid, default=default, metavar="GRID", help=about)


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """--config, and an option for each of its fields."""
    names = ", ".join(configs.config_names())
    about = f"the run's config: {names}, or the path of your own file; NAME:SIZE where it has sizes"
    parser.add_argument("--config", required=required, metavar="NAME", help=about)
    parser.mappings = []
    for group, defaults in Settings().values().items():
        for name, default in defaults.items() if isinstance(defaults, dict) else [("", defaults)]:
            option = f"--config.{group}.{name}".rstrip(".")
            parser.mappings += [option] * isinstance(default, dict)
            hidden = dict(default=argparse.SUPPRESS, help=argparse.SUPPRESS)
            parser.add_argument(option, dest=option.removeprefix("--"), type=_reader(default), **hidden)


def _reader(default: Any) -> Callable[[str], Any]:
    """Reads a field's text as what its default is; what the value may be is the settings' own business."""

    def read(text: str) -> Any:
        if isinstance(default, str):
            return text
        if isinstance(default, tuple) and not text.startswith(("(", "[")):
            return words(text) if default and isinstance(default[0], str) else tuple(map(_literal, words(text)))
        return _literal(text)

    return read


def _literal(text: str) -> Any:
    """A number, a truth value or a tuple; where it is none of these the text, which the settings refuse."""
    try:
        return ast.literal_eval(text.title() if text in ("true", "false") else text)
    except (ValueError, SyntaxError):
        return text


def read_settings(options: argparse.Namespace) -> Settings:
    """The checked settings that --config and its fields' options describe; ValueError for what cannot be."""
    config = ConfigDict(Settings().values())
    with config.ignore_type():  # the settings check types, and say more
        config.update(configs.load_config(options.config))
        config.update_from_flattened_dict(vars(options), "config.")
    return make_settings(config.to_dict())
