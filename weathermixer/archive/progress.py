"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, both with rate and time left."""

import sys

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
FORMAT = "{desc}: {percentage:.0f} %|{bar}| {n:.0f} of {total:.0f}{unit}, {rate_noinv_fmt}, {remaining} left"


class _Lines:
    """Standard error where it is no terminal: what would be drawn over what was there is a line."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr, flush=True)


def make_progress(what: str, *, total: int, done: int = 0, unit: str, bytes_each: int = 0, show: bool = True) -> tqdm:
    """Counts work out of a total, as `update` says of it; in MB where `bytes_each` is given. To be used in `with`."""
    options = {} if sys.stderr.isatty() else {"file": _Lines(), "mininterval": SECONDS_BETWEEN_LINES, "ncols": 100}
    options |= {"unit": " MB", "unit_scale": bytes_each / 1e6} if bytes_each else {"unit": f" {unit}"}
    return tqdm(desc=what, total=total, initial=done, bar_format=FORMAT, disable=not show, **options)
