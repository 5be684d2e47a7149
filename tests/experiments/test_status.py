"""The status program: what it tells of workdirs, whatever state they are in; the curve; bad input."""

import json
import os
import time

import pytest

from experiments import ends, status


def make_workdir(path, *, steps=100, last_step=400, age=0.0, starts=1, ended=None, stopped=0):
    """A workdir with what a run writes: a line every ten steps, a checkpoint every fifty."""
    path.mkdir()
    (path / "config.json").write_text("{}")
    log = "process 0 of 1 on node1, 1 of 1 devices here (cpu), mesh {}\n"
    log += f"1,234 parameters, steps 0 to {last_step}\n"
    (path / "log.txt").write_text(log * starts + "asked to stop: saved step 50; the same command goes on\n" * stopped)
    records = [{"step": 0, "seconds": {}, "time": time.time() - 200}]
    for step in range(10, steps + 1, 10):
        rates = {"step_seconds": 0.5, "samples_per_second": 16.0, "device_gigabytes": 61.25}
        records.append({"step": step, "loss": 1 / step, "time": time.time(), **rates})
    records.append({"step": steps, "seconds": {"computing": 90.0, "lost": 10.0}, "time": time.time()})
    text = "".join(json.dumps(record) + "\n" for record in records)
    (path / "metrics.jsonl").write_text(text + '{"step": 110, "lo')  # which is being written
    for step in range(50, steps + 1, 50):
        (path / "checkpoints" / str(step)).mkdir(parents=True)
    (path / "checkpoints" / "150.orbax-checkpoint-tmp").mkdir(parents=True)
    if ended is not None:
        ends.write_end(path, ended, "because")
    owner = {"host": "node1", "process": 77, "since": "2000-01-01T00:00:00+0000"}
    (path / "owner.json").write_text(json.dumps(owner))
    for name in ("config.json", "log.txt", "metrics.jsonl", "owner.json"):
        os.utime(path / name, (time.time() - age,) * 2)
    return path


def test_a_run_in_full(tmp_path, capsys):
    status.main([str(make_workdir(tmp_path / "run"))])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path}/run: running, step 100 of 400 (25.0%)"
    assert lines.pop(0) == "  owner node1, process 77, since 2000-01-01T00:00:00+0000"
    assert lines[0].split() == ["loss", "0.1", "█▆▅▄▃▂▂▁▁▁", "0.01,", "least", "0.01"]
    assert lines[1:] == [
        "  rate 0.5 s/step, 16 samples/s, 2 min 30 s left",
        "  checkpoints 50, 100",
        "  time of 1 min 40 s since the first start: 90.0% computing, 10.0% lost",
        "  starts 1, of which 0 ended by a fault or a kill",
        "  memory 61.2 GB at most on a device",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(ended=0, steps=400), ["run: finished, step 400 of 400 (100.0%)", "with status 0: because"]),
        (dict(ended=75, stopped=1), ["run: preempted,", "of which 0 ended by a fault"]),
        (dict(ended=70, starts=3, stopped=1), ["run: failed,", "status 70: because", "starts 3, of which 2 ended"]),
        (dict(age=7200.0), ["run: silent,", "no sign of life for 2 h 00 min: it was killed, or its"]),
    ],
)
def test_how_it_ended(options, said, tmp_path, capsys):
    status.main([str(make_workdir(tmp_path / "run", **options))])
    text = capsys.readouterr().out
    assert all(words in text for words in said), text


def test_several_as_a_table_and_one_that_has_not_begun(tmp_path, capsys):
    make_workdir(tmp_path / "a"), make_workdir(tmp_path / "long-name", ended=75, stopped=1)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text("{}")
    status.main([str(tmp_path / name) for name in ("a", "long-name", "new")])
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head == ["run", "state", "step", "of", "loss", "s/step", "left", "saved", "starts", "faults"]
    assert rows[0][1:] == ["running", "100", "400", "0.01", "0.5", "2", "min", "30", "s", "100", "1", "0"]
    assert rows[1][1] == "preempted" and rows[2][1:] == ["running", "0", "0", "0"]
    status.main([str(tmp_path / "new")])
    assert capsys.readouterr().out.startswith(f"{tmp_path}/new: running, step 0\n")


def test_no_run(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no run: it has no config.json"):
        status.main([str(tmp_path)])


def test_a_curve_is_no_wider_than_it_may_be():
    assert status.draw_curve([8, 4, 2, 1], width=4) == "█▆▃▁"
    assert status.draw_curve([3, 0, -3]) == "█▅▁"
    assert len(status.draw_curve(range(1000), width=40)) == 40
    assert status.draw_curve([1.0, 1.0]) == "▁▁"
