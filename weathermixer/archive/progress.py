"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, both with rate and time left."""

import sys
import time
from typing import TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts work done out of a total; `bytes_each` turns its rate into MB/s too. Used as a context manager."""

    def __init__(
        self, what: str, *, total: int, done: int = 0, unit: str, bytes_each: int = 0, stream: TextIO | None = None
    ):
        self._what, self._total, self._done, self._unit, self._bytes_each = what, total, done, unit, bytes_each
        self._first, self._start, self._stream = done, time.monotonic(), stream or sys.stderr
        self._last_line = self._start
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm(desc=what, total=total, initial=done, unit=f" {unit}", file=self._stream, smoothing=0.1)

    def update(self, count: int) -> None:
        """Adds work that was just done."""
        self._done += count
        seconds = max(time.monotonic() - self._start, 1e-6)
        rate = (self._done - self._first) / seconds
        speed = f"{rate * self._bytes_each / 1e6:.0f} MB/s"
        if self._bar is not None:
            if self._bytes_each:
                self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or self._done == self._total:
            self._last_line = time.monotonic()
            left = _duration((self._total - self._done) / max(rate, 1e-9))
            share = f"{self._done} of {self._total} {self._unit} ({100 * self._done / self._total:.0f} %)"
            speeds = f"{rate:.1f} {self._unit}/s" + (f", {speed}" if self._bytes_each else "")
            print(f"{self._what}: {share}, {speeds}, {left} left", file=self._stream, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 90:
        return f"{seconds} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
