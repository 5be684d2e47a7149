"""A run's time by phases, exactly, and over restarts."""

import threading
import time
import types

import pytest

from weathermixer.parallel import distributed
from weathermixer.training import phases as module
from weathermixer.training.phases import PARTS, Phases, format_account, format_seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to: clock.now += seconds."""
    clock = types.SimpleNamespace(now=1000.0)
    fakes = {name: lambda: clock.now for name in ("perf_counter", "monotonic", "time")}
    monkeypatch.setattr(module, "time", types.SimpleNamespace(**fakes))
    return clock


def run(clock, phases):
    clock.now += 2
    with phases("compiling"):
        clock.now += 5
    with phases("computing"):
        clock.now += 10
        with phases("saving"):
            clock.now += 1
        with phases("reading"):
            clock.now += 4
        phases.idle(3.0)  # of these four the devices had work for one


def test_phases_within_phases_are_counted_once(clock):
    phases = Phases()
    run(clock, phases)
    expected = dict.fromkeys(PARTS, 0.0) | {"starting": 2, "compiling": 5, "computing": 11, "waiting": 3, "saving": 1}
    assert phases.account() == phases.account() == expected


def test_what_lies_between_an_account_and_the_next_start_is_lost(clock):
    first = Phases()
    run(clock, first)
    account, at = first.account(), clock.now
    clock.now += 100
    second = Phases()
    clock.now += 7
    second.go_on(account, until=at)
    clock.now += 1
    found = second.account()
    assert found["lost"] == 100 and found["starting"] == 2 + 8 and found["waiting"] == 3
    assert sum(found.values()) == clock.now - 1000


def test_words():
    seconds = dict.fromkeys(PARTS, 0.0) | {"computing": 3000.0, "compiling": 749.0, "lost": 1.0}
    assert format_account(seconds) == "of 1 h 02 min since the first start: 80.0% computing, 20.0% compiling"
    times = {41: "41 s", 725: "12 min 05 s", 3 * 3600 + 420: "3 h 07 min", 2 * 86400 + 4 * 3600: "2 d 04 h"}
    assert {seconds: format_seconds(seconds) for seconds in times} == times


def test_real_time_is_accounted_for():
    began, phases = time.time(), Phases()
    with phases("evaluation"):
        time.sleep(0.05)
    assert 0.05 <= phases.account()["evaluation"] <= sum(phases.account().values()) <= time.time() - began + 0.01


@pytest.mark.parametrize("asked, status", [(True, distributed.PREEMPTED), (False, distributed.STUCK)])
def test_who_is_asked_to_stop_has_time_for_that_before_patience_ends(monkeypatch, asked, status):
    left, ended = [], threading.Event()
    leave = lambda status, why, report: (left.append(status), ended.set(), time.sleep(60))  # noqa: E731
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(module, "LEAVE_SECONDS", 0.5)
    monkeypatch.setattr(module.distributed, "asked", lambda: asked)
    monkeypatch.setattr(module.distributed, "leave", leave)
    phases = Phases()
    with phases.watched(0.2, lambda *_: None), phases("reading"):
        assert ended.wait(20)
    assert left == [status]
