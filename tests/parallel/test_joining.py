"""The roll that process 0 calls: who is missing is named, whoever it is."""

import contextlib
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from weathermixer.parallel import joining
from weathermixer.parallel.joining import Place, call_roll, name_processes


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def answers(places, seconds):
    """What the roll gives each of these processes, all at once: None, or the error."""

    def call(place):
        try:
            call_roll(place, seconds=seconds)
        except (OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(call, places))


def test_all_join_in_any_order_and_the_port_is_free_again(address):
    places = [Place(address, 4, process) for process in (3, 1, 0, 2)]
    assert answers(places, 20) == [None] * 4
    assert answers(places, 20) == [None] * 4


def test_who_is_missing_is_named(address, monkeypatch, capsys):
    monkeypatch.setattr(joining, "SAY_SECONDS", 0.5)
    first, other = answers([Place(address, 4, 0), Place(address, 4, 2)], 1.5)
    assert re.fullmatch(rf"process 0 of 4 waited [23] s in vain for processes 1 and 3 to join at {address}", str(first))
    assert isinstance(first, TimeoutError) and f"for process 0 at {address}: " in str(other)
    said = capsys.readouterr().err
    assert f"process 0 of 4 waits for processes 1 and 3 to join at {address} (" in said
    assert f"process 2 of 4 waits for process 0 at {address}: it waits for others (" in said


def test_no_process_0(address):
    (error,) = answers([Place(address, 2, 1)], 0.5)
    assert f"process 1 of 2 waited 1 s in vain for process 0 at {address}: " in str(error) and "refused" in str(error)


def test_processes_that_were_told_different_numbers(address):
    first, _ = answers([Place(address, 2, 0), Place(address, 3, 1)], 2)
    assert str(first) == "process 1 was told of 3 processes, process 0 of 2"


def test_a_port_that_is_taken(address):
    with socket.create_server(("", int(address.split(":")[1]))):
        (error,) = answers([Place(address, 2, 0)], 5)
    assert f"process 0 cannot listen at {address}: " in str(error) and "choose another port" in str(error)


def test_what_is_not_of_the_run_is_not_taken_for_a_process(address):
    def knock():
        with contextlib.suppress(OSError), socket.create_connection(address.split(":"), timeout=5) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            stranger.recv(1)

    threading.Timer(0.2, knock).start()
    first, second = (pool := ThreadPoolExecutor(2)).map(
        lambda place: call_roll(place, seconds=20), [Place(address, 2, 0), Place(address, 2, 1)]
    )
    pool.shutdown()
    assert first is second is None


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([3], "process 3"),
        ([1, 2, 5], "processes 1, 2 and 5"),
        (range(1, 11), "processes 1, 2, 3, 4, 5, 6, 7, 8 and 2 more"),
    ],
)
def test_names(numbers, words):
    assert name_processes(list(numbers)) == words
