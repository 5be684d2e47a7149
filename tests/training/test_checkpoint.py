"""Checkpoints: bit-equal on any mesh, whole or in parts, complete or not there, and clear about what does not fit."""

import dataclasses
import json
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from weathermixer.parallel.mesh import make_mesh, sharding, use_mesh
from weathermixer.training.checkpoint import Checkpoints, read_meta


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    step: jax.Array
    params: dict
    moments: optax.OptState


def make_state(mesh, seed=0) -> State:
    """A state like a run's: cut kernels in two precisions, optimizer moments, a counter."""

    def draw(number, shape, *names, dtype=jnp.float32):
        values = np.random.default_rng((seed, number)).normal(size=shape)
        return jax.device_put(jnp.asarray(values, dtype), sharding(mesh, *names))

    params = {
        "blocks": [
            {"kernel": draw(i, (8, 16), "token_in", "token_out"), "bias": draw(9 + i, (16,), "token_vector")}
            for i in range(2)
        ],
        "head": {"kernel": draw(5, (16, 8), "embed_in", "embed_out", dtype=jnp.bfloat16)},
    }
    with use_mesh(mesh):
        moments = optax.adam(1e-3).init(params)
    return State(jax.device_put(jnp.int32(7), sharding(mesh)), params, moments)


def abstract(state) -> State:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with one checkpoint, of step 10, saved on the mesh 2 x 2 x 2."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(directory, keep=3) as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.save(10, make_state(make_mesh(2, 2, 2)), {"config": {"seed": 3}})
    return directory


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2), (1, 1, 1), (8, 1, 1)])
def test_restores_bit_equal_on_any_mesh(saved, shape):
    want = make_state(make_mesh(*shape))
    other = jax.tree.map(lambda x: x, abstract(want))
    with Checkpoints(saved) as checkpoints:
        got = checkpoints.restore(other)
    assert_same(got, want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.sharding == b.sharding


def test_arrays_serve_as_target(saved):
    """A state that was just made says where everything goes; its values do not matter."""
    mesh = make_mesh(1, 2, 4)
    with Checkpoints(saved) as checkpoints:
        assert_same(checkpoints.restore(make_state(mesh, seed=1)), make_state(mesh))


def test_restores_parts(saved):
    state = make_state(make_mesh(1, 2, 2))
    with Checkpoints(saved) as checkpoints:
        assert_same(checkpoints.restore({"params": abstract(state.params)}, partial=True), {"params": state.params})
        with pytest.raises(ValueError, match=r"moments/0/count is int32\[\] there, not here"):
            checkpoints.restore({"params": abstract(state.params)})


def test_meta_holds_step_config_and_software(saved):
    meta = read_meta(saved)
    assert meta["step"] == 10
    assert meta["config"] == {"seed": 3}
    assert meta["software"]["jax"] == jax.__version__


def test_nnx_parameters_keep_the_models_names(tmp_path):
    """An nnx.State restores from a checkpoint of the plain dict with the same names, and back."""
    with use_mesh(make_mesh(1, 1, 1)):
        params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        with Checkpoints(tmp_path, keep=3) as checkpoints:
            checkpoints.save(1, {"params": params}, {})
            plain = {"params": {"kernel": params["kernel"].get_value(), "bias": params["bias"].get_value()}}
            assert_same(checkpoints.restore(abstract(plain)), plain)
            assert_same(checkpoints.restore(abstract({"params": params})), {"params": params})


def test_the_last_are_kept(tmp_path):
    state = {"x": jnp.arange(4.0)}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert all(checkpoints.save(step, state, {}) for step in (2, 4, 6, 7))
        assert not checkpoints.save(7, state, {})  # there already
        checkpoints.wait()
        assert checkpoints.steps() == [6, 7]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [6, 7]


def test_what_is_kept_besides_the_last(tmp_path):
    """By steps, and the best by validation, also those that were rated before a restart."""
    losses = {1: 0.5, 2: 0.1, 3: 0.4, 4: 0.2, 5: 0.6, 6: 0.7, 7: 0.8, 8: 0.9, 9: 0.3}
    options = dict(keep=1, keep_best=2, keep_every=5)
    for first, last in ((1, 6), (7, 9)):
        with Checkpoints(tmp_path, **options) as checkpoints:
            assert checkpoints.resume() == first - 1
            for step in range(first, last + 1):
                checkpoints.save(step, {"x": jnp.arange(4.0)}, {})
                checkpoints.rate(step, losses[step])
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5, 9]


def test_one_is_kept_for_every_so_many_hours(tmp_path):
    options = dict(keep=1, keep_hours=1.0)
    for steps, kept in ((range(1, 4), [1, 3]), (range(4, 7), [1, 3, 6])):
        with Checkpoints(tmp_path, **options) as checkpoints:
            for step in steps:
                checkpoints.save(step, {"x": jnp.arange(4.0)}, {})
            checkpoints.wait()
            assert checkpoints.steps() == kept
        about = tmp_path / "1" / "_CHECKPOINT_METADATA"
        values = json.loads(about.read_text())
        values["commit_timestamp_nsecs"] -= int(7200e9)  # the first one was made two hours ago
        about.write_text(json.dumps(values))


def test_a_save_is_told_of_when_it_is_there(tmp_path):
    """A file may not grow as far as the second one needs: real, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).random(1 << 20)
    said = []
    with Checkpoints(tmp_path, keep=3, say=said.append) as checkpoints:
        checkpoints.save(1, {"x": jnp.arange(4.0)}, {})
        checkpoints.wait()
        checkpoints.wait()
        assert len(said) == 1 and said[0].startswith("saved step 1: ")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        try:
            checkpoints.save(2, {"x": jnp.asarray(noise)}, {})
            with pytest.raises(OSError, match=r"saving step 2 to .* failed: .*there are \[1\]: remove the cause"):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert checkpoints.steps() == [1]
        assert checkpoints.save(2, {"x": jnp.asarray(noise)}, {})


def test_a_flipped_bit_anywhere_is_found(saved, tmp_path):
    rng = np.random.default_rng(0)
    committed = ("commit_success.txt", "_CHECKPOINT_METADATA")  # written when all else is there, and not restored
    files = sorted(path for path in saved.rglob("*") if path.is_file() and path.name not in committed)
    for number, path in enumerate(files):
        copy = shutil.copytree(saved, tmp_path / str(number)) / path.relative_to(saved)
        content = bytearray(copy.read_bytes())
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        copy.write_bytes(content)
        named = pytest.raises(ValueError, match=rf"step 10 is damaged: {copy} ")
        with Checkpoints(tmp_path / str(number)) as checkpoints, named:
            checkpoints.whole(10)


def test_one_of_older_software_has_no_checksums_and_is_read(saved, tmp_path, capsys):
    directory = shutil.copytree(saved, tmp_path / "old")
    for path in directory.rglob("checksums.json"):
        path.unlink()
    meta = directory / "10" / "meta" / "metadata"
    values = json.loads(meta.read_text())
    with (
        Checkpoints(directory) as checkpoints,
        pytest.raises(ValueError, match="checksums.json is damaged: .*No such"),
    ):
        checkpoints.whole(10)
    meta.write_text(json.dumps({name: value for name, value in values.items() if name != "summed"}))
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.resume() == 10
    assert "has no checksums" in capsys.readouterr().err


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    mesh = make_mesh(1, 4, 2)
    x = jax.device_put(jnp.ones((1024, 512)), sharding(mesh, "token_in", "token_out"))
    spoil = jax.jit(lambda x: x * jnp.nan, donate_argnums=0)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.save(1, {"x": x}, {})
        target = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        spoil(x).block_until_ready()
        checkpoints.wait()
        np.testing.assert_array_equal(np.asarray(checkpoints.restore({"x": target})["x"]), 1.0)


def change(state, **replaced):
    return dataclasses.replace(state, params={**state.params, **replaced})


def test_mismatches_name_the_parameter_and_both_shapes(saved):
    state = abstract(make_state(make_mesh(1, 2, 2)))
    kernel = state.params["head"]["kernel"]
    wider = jax.ShapeDtypeStruct((16, 12), jnp.bfloat16, sharding=kernel.sharding)
    double = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=kernel.sharding)
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(
            ValueError,
            match=r"params/head/kernel is bfloat16\[16, 8\] there, bfloat16\[16, 12\] here",
        ):
            checkpoints.restore(change(state, head={"kernel": wider}))
        with pytest.raises(ValueError, match=r"params/head/kernel is bfloat16\[16, 8\] there, float32\[16, 8\] here"):
            checkpoints.restore(change(state, head={"kernel": double}))
        with pytest.raises(ValueError, match="params/head/scale is not there, bfloat16"):
            checkpoints.restore(change(state, head={"kernel": kernel, "scale": kernel}))


def test_steps_that_are_not_there(saved, tmp_path):
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(ValueError, match=r"no checkpoint of step 11 in .*it has \[10\]"):
            checkpoints.restore({}, 11)
        with pytest.raises(ValueError, match="were opened to read"):
            checkpoints.save(11, {}, {})
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="there are no checkpoints in"):
        checkpoints.whole()
    with pytest.raises(ValueError, match="no such directory"):
        Checkpoints(tmp_path / "none")


def test_the_last_one_is_always_kept(tmp_path):
    with pytest.raises(ValueError, match="keep=0 of the checkpoints in .*: keep the last one at least"):
        Checkpoints(tmp_path, keep=0)


def test_a_kill_during_a_save_leaves_the_one_before(tmp_path):
    """kill -9 while the second of two is being written: the first loads, the second can be written again."""
    program = """
        import sys, jax.numpy as jnp
        from weathermixer.training.checkpoint import Checkpoints
        with Checkpoints(sys.argv[1], keep=3) as checkpoints:
            checkpoints.save(1, {"x": jnp.full((64,), 1.0)}, {})
            checkpoints.wait()
            checkpoints.save(2, {"x": jnp.full((64, 1024, 1024), 2.0)}, {})
            print("saving", flush=True)
            checkpoints.wait()
            print("saved", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "saving\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.stdout.read() == ""  # it was killed before the save was complete
    assert process.returncode == -signal.SIGKILL
    assert any(path.name.startswith("2.") for path in tmp_path.iterdir())
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert checkpoints.steps() == [1]
        target = {"x": jax.ShapeDtypeStruct((64,), jnp.float32, sharding=sharding(make_mesh(1, 1, 1), None))}
        np.testing.assert_array_equal(np.asarray(checkpoints.restore(target)["x"]), 1.0)
        assert checkpoints.save(2, {"x": jnp.full((64,), 2.0)}, {})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2]
