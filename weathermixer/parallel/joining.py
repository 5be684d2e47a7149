"""How processes find each other before they are one run: process 0 calls the roll, and says who is missing."""

import contextlib
import socket
import sys
import time
from collections.abc import Sequence

from weathermixer.parallel.places import Place

SAY_SECONDS = 30.0


class Waiting:
    """Says now and then what `who` waits for; TimeoutError after so many seconds.

    waiting = Waiting("process 0", seconds=300)
    while not ...:
        waiting.go_on("process 1")
    """

    def __init__(self, who: str, seconds: float | int = float("inf")):
        self._who, self._seconds, self._started, self._said = who, seconds, time.monotonic(), SAY_SECONDS

    def go_on(self, what: str) -> float:
        """Says so where it is time; the seconds since the start."""
        waited = time.monotonic() - self._started
        if waited > self._seconds:
            raise TimeoutError(f"{self._who} waited {waited:.0f} s in vain for {what}")
        if waited > self._said:
            say(f"{self._who} waits for {what} ({waited:.0f} s)")
            self._said += SAY_SECONDS
        return waited


def call_roll(place: Place, *, seconds: float | int) -> None:
    """Waits until all processes of a run are there.

    Process 0 answers where JAX's own service listens afterwards, which ends a process that waits in vain without an
    exception. Raises TimeoutError after `seconds`, OSError where process 0 cannot listen, and ValueError where
    processes were told different numbers of them.
    """
    host, _, port = place.coordinator.rpartition(":")
    waiting = Waiting(f"process {place.process} of {place.processes}", seconds)
    if place.process == 0:
        _call(place, int(port), waiting)
    else:
        _answer(place, (host.strip("[]"), int(port)), waiting)


def _call(place: Place, port: int, waiting: Waiting) -> None:
    there: dict[int, socket.socket] = {}
    dual = dict(family=socket.AF_INET6, dualstack_ipv6=True) if socket.has_dualstack_ipv6() else {}
    try:
        server = socket.create_server(("", port), backlog=place.processes, **dual)
    except OSError as error:
        raise OSError(f"process 0 cannot listen at {place.coordinator}: {error}; choose another port") from error
    with server:
        server.settimeout(1)
        while missing := [process for process in range(1, place.processes) if process not in there]:
            waiting.go_on(f"{name_processes(missing)} to join at {place.coordinator}")
            with contextlib.suppress(OSError):
                connection = server.accept()[0]
                connection.settimeout(5)
                words = connection.recv(64).split()
                if len(words) != 2 or not all(word.isdigit() for word in words):  # not one of ours
                    connection.close()
                    continue
                process, processes = map(int, words)
                if processes != place.processes:
                    raise ValueError(
                        f"process {process} was told of {processes} processes, process 0 of {place.processes}"
                    )
                there[process] = connection
    for connection in there.values():
        with contextlib.suppress(OSError), connection:
            connection.sendall(b"go")
            connection.recv(1)  # until the other one has closed: its end keeps the port for a while, not this one


def _answer(place: Place, address: tuple[str, int], waiting: Waiting) -> None:
    reason: Exception | str = "no answer"
    connection: socket.socket | None = None
    while True:
        waiting.go_on(f"process 0 at {place.coordinator}: {reason}")
        try:
            if connection is None:
                connection = socket.create_connection(address, timeout=1)
                connection.sendall(b"%d %d\n" % (place.process, place.processes))
            if connection.recv(2) == b"go":
                connection.close()
                return
            raise OSError("something else answers")
        except TimeoutError:
            reason = "it waits for others" if connection else "no answer"
        except OSError as error:
            reason, connection = error, None
            time.sleep(0.2)


def name_processes(numbers: Sequence[int]) -> str:
    """`process 3`, `processes 1, 2 and 5`, or the first few of many."""
    shown = [str(number) for number in numbers[:8]] + [f"{len(numbers) - 8} more"] * (len(numbers) > 8)
    return f"process {shown[0]}" if len(shown) == 1 else f"processes {', '.join(shown[:-1])} and {shown[-1]}"


def say(line: str) -> None:
    sys.stderr.write(line + "\n")  # in one piece, so that lines of several processes do not mix
    sys.stderr.flush()
