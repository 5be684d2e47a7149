"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, both with rate and time left."""

import contextlib
import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress(contextlib.AbstractContextManager):
    """Counts work done out of a total; `bytes_each` turns its rate into MB/s too. Used as a context manager."""

    def __init__(self, what: str, *, total: int, done: int = 0, unit: str, bytes_each: int = 0):
        self._what, self._total, self._done, self._unit, self._bytes_each = what, total, done, unit, bytes_each
        self._first, self._start = done, time.monotonic()
        self._last_line = self._start
        options = {"desc": what, "total": total, "initial": done, "unit": f" {unit}", "smoothing": 0.1}
        self._bar = tqdm(**options, disable=not sys.stderr.isatty())

    def update(self, count: int) -> None:
        """Adds work that was just done."""
        self._done += count
        now = time.monotonic()
        rate = (self._done - self._first) / max(now - self._start, 1e-6)
        speed = f"{rate * self._bytes_each / 1e6:.0f} MB/s, " * bool(self._bytes_each)
        self._bar.set_postfix_str(speed.rstrip(", "), refresh=False)
        self._bar.update(count)
        if self._bar.disable and (now - self._last_line > SECONDS_BETWEEN_LINES or self._done == self._total):
            self._last_line = now
            left = tqdm.format_interval((self._total - self._done) / max(rate, 1e-9))
            share = f"{self._done} of {self._total} {self._unit} ({100 * self._done / self._total:.0f} %)"
            line = f"{self._what}: {share}, {rate:.1f} {self._unit}/s, {speed}{left} left"
            print(line, file=sys.stderr, flush=True)

    def __exit__(self, *_) -> None:
        self._bar.close()
