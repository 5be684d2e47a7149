"""`benchmark train` on a mesh of simulated devices: one row, printed."""

import jaxtyping
import pytest

from experiments.benchmark import train

TINY = ["--grid=8,16", "--steps=1", "--config.model.compute_dtype=float32", "--config.model.blocks=1"]
TINY += ["--config.model.embed=16", "--config.model.embed_hidden=16"]
TINY += ["--config.model.patch=1,4", "--config.model.token_hidden=16", "--config.model.head=increment"]
FEW = ["--config.data.channels=2m_temperature,geopotential_500", "--config.data.static=soil_type,land_sea_mask"]


@pytest.fixture(autouse=True)
def describe_instead_of_hold():
    """Lowering fills the step's dataclasses with descriptions of arrays, which the check of types would refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.slow
def test_a_row_is_printed(tmp_path, capsys):
    program = tmp_path / "step.hlo"
    row = train.main([*TINY, *FEW, "--mesh=1,2,2", f"--hlo={program}"])
    assert row["mesh"] == "1x2x2" and row["token_hidden"] == 16 and row["step_ms"] > 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == list(row) and printed[1].split() == [str(value) for value in row.values()]
    assert "collective-permute" in program.read_text()


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="patch_rows=8 is not divisible by domain=3"):
        train.main([*TINY, *FEW, "--mesh=1,3,1"])


def test_fed_steps_are_timed_beside_bare_ones(make_archive, tmp_path):
    archive = make_archive(domain=2)
    row = train.main([*TINY, "--mesh=2,2,1", f"--data={archive.path}", "--steps=3", f"--hlo={tmp_path / 'hlo'}"])
    assert row["mesh"] == "2x2x1" and "collective-permute" in (tmp_path / "hlo").read_text()
    assert row["fed_over_bare"] == pytest.approx(row["fed_ms"] / row["step_ms"], rel=0.02)
    assert 0 <= row["idle_ms"] <= row["fed_ms"]
