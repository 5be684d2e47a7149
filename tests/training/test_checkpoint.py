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
from weathermixer.training.checkpoint import open_checkpoints


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    step: jax.Array
    params: dict
    moments: optax.OptState
    key: jax.Array


def make_state(mesh, seed=0) -> State:
    """A state like a run's: cut kernels in two precisions, optimizer moments, a typed key, a counter."""

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
    whole = sharding(mesh)
    return State(jax.device_put(jnp.int32(7), whole), params, moments, jax.device_put(jax.random.key(seed), whole))


def abstract(state) -> State:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with one checkpoint, of step 10, saved on the mesh 2 x 2 x 2."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    with open_checkpoints(directory, every=10) as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.save(10, make_state(make_mesh(2, 2, 2)), {"config": {"seed": 3}})
    return directory


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2), (1, 1, 1), (8, 1, 1)])
def test_restores_bit_equal_on_any_mesh(saved, shape):
    want = make_state(make_mesh(*shape))
    other = jax.tree.map(lambda x: x, abstract(want))
    with open_checkpoints(saved) as checkpoints:
        got = checkpoints.restore(other)
    assert_same(got, want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.sharding == b.sharding


def test_arrays_serve_as_target(saved):
    """A state that was just made says where everything goes; its values do not matter."""
    mesh = make_mesh(1, 2, 4)
    with open_checkpoints(saved) as checkpoints:
        assert_same(checkpoints.restore(make_state(mesh, seed=1)), make_state(mesh))


def test_restores_parts(saved):
    state = make_state(make_mesh(1, 2, 2))
    with open_checkpoints(saved) as checkpoints:
        assert_same(checkpoints.restore({"params": abstract(state.params)}, partial=True), {"params": state.params})
        with pytest.raises(ValueError, match="moments/0/count is in the checkpoint alone"):
            checkpoints.restore({"params": abstract(state.params)})


def test_meta_holds_step_config_and_software(saved):
    with open_checkpoints(saved) as checkpoints:
        meta = checkpoints.restore_meta()
    assert meta["step"] == 10
    assert meta["config"] == {"seed": 3}
    assert meta["software"]["jax"] == jax.__version__


def test_nnx_parameters_keep_the_models_names(tmp_path):
    """An nnx.State restores from a checkpoint of the plain dict with the same names, and back."""
    with use_mesh(make_mesh(1, 1, 1)):
        params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        with open_checkpoints(tmp_path, every=1) as checkpoints:
            checkpoints.save(1, {"params": params}, {})
            plain = {"params": {"kernel": params["kernel"].get_value(), "bias": params["bias"].get_value()}}
            assert_same(checkpoints.restore(abstract(plain)), plain)
            assert_same(checkpoints.restore(abstract({"params": params})), {"params": params})


def test_every_keep_and_force(tmp_path):
    state = {"x": jnp.arange(4.0)}
    with open_checkpoints(tmp_path, every=2, keep=2) as checkpoints:
        written = [step for step in range(1, 8) if checkpoints.save(step, state, {})]
        assert written == [2, 4, 6]
        assert checkpoints.save(7, state, {}, force=True)
        assert not checkpoints.save(7, state, {}, force=True)  # there already
        checkpoints.wait()
        assert checkpoints.steps() == [6, 7]
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 7


def test_what_is_kept_besides_the_last(tmp_path):
    """By steps, and the best by validation, also those that were rated before a restart."""
    losses = {1: 0.5, 2: 0.1, 3: 0.4, 4: 0.2, 5: 0.6, 6: 0.7, 7: 0.8, 8: 0.9, 9: 0.3}
    options = dict(every=1, keep=1, keep_best=2, keep_every=5)
    for first, last in ((1, 6), (7, 9)):
        with open_checkpoints(tmp_path, **options) as checkpoints:
            assert checkpoints.resume() == first - 1
            for step in range(first, last + 1):
                checkpoints.save(step, {"x": jnp.arange(4.0)}, {})
                checkpoints.rate(step, losses[step])
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5, 9]


def test_one_is_kept_for_every_so_many_hours(tmp_path):
    options = dict(every=1, keep=1, keep_hours=1.0)
    for steps, kept in ((range(1, 4), [1, 3]), (range(4, 7), [1, 3, 6])):
        with open_checkpoints(tmp_path, **options) as checkpoints:
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
    with open_checkpoints(tmp_path, every=1) as checkpoints:
        checkpoints.save(1, {"x": jnp.arange(4.0)}, {})
        assert checkpoints.wait().startswith("saved step 1: ") and not checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        try:
            checkpoints.save(2, {"x": jnp.asarray(noise)}, {})
            with pytest.raises(OSError, match=r"saving step 2 to .* failed: .*there are \[1\]: remove the cause"):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert checkpoints.latest_step() == 1
        assert checkpoints.save(2, {"x": jnp.asarray(noise)}, {})


def test_a_flipped_bit_anywhere_is_found(saved, tmp_path):
    rng = np.random.default_rng(0)
    files = sorted(path for path in saved.rglob("*") if path.is_file() and path.name != "commit_success.txt")
    for number, path in enumerate(files):
        copy = shutil.copytree(saved, tmp_path / str(number)) / path.relative_to(saved)
        content = bytearray(copy.read_bytes())
        # of the file that Orbax adds the time of the commit to, what lies before that
        place = int(rng.integers(100 if path.name == "_CHECKPOINT_METADATA" else len(content)))
        content[place] ^= 1 << int(rng.integers(8))
        copy.write_bytes(content)
        named = pytest.raises(ValueError, match=rf"step 10 is damaged: {copy} ")
        with open_checkpoints(tmp_path / str(number)) as checkpoints, named:
            checkpoints.check(10)


def test_one_of_older_software_has_no_checksums_and_is_read(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "old")
    for path in directory.rglob("CHECKSUMS"):
        path.unlink()
    meta = directory / "10" / "meta" / "metadata"
    values = json.loads(meta.read_text())
    with open_checkpoints(directory) as checkpoints, pytest.raises(ValueError, match="CHECKSUMS cannot be read"):
        checkpoints.check(10)
    meta.write_text(json.dumps({name: value for name, value in values.items() if name != "checksums"}))
    with open_checkpoints(directory) as checkpoints:
        assert "has no checksums" in checkpoints.check(10)
        assert checkpoints.restore_meta()["step"] == 10


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    mesh = make_mesh(1, 4, 2)
    x = jax.device_put(jnp.ones((1024, 512)), sharding(mesh, "token_in", "token_out"))
    spoil = jax.jit(lambda x: x * jnp.nan, donate_argnums=0)
    with open_checkpoints(tmp_path, every=1) as checkpoints:
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
    with open_checkpoints(saved) as checkpoints:
        with pytest.raises(
            ValueError,
            match=r"params/head/kernel is bfloat16\[16, 8\] in the checkpoint, bfloat16\[16, 12\] in this run",
        ):
            checkpoints.restore(change(state, head={"kernel": wider}))
        with pytest.raises(
            ValueError, match=r"params/head/kernel is bfloat16\[16, 8\] .* float32\[16, 8\] in this run"
        ):
            checkpoints.restore(change(state, head={"kernel": double}))
        with pytest.raises(ValueError, match="params/head/scale is not in the checkpoint"):
            checkpoints.restore(change(state, head={"kernel": kernel, "scale": kernel}))
        keys = jax.ShapeDtypeStruct((3,), state.key.dtype, sharding=state.key.sharding)
        with pytest.raises(ValueError, match=r"key is key<fry>\[\] in the checkpoint, key<fry>\[3\] in this run"):
            checkpoints.restore(dataclasses.replace(state, key=keys))


def test_steps_that_are_not_there(saved, tmp_path):
    with open_checkpoints(saved) as checkpoints:
        with pytest.raises(ValueError, match=r"no checkpoint of step 11 in .*it has \[10\]"):
            checkpoints.restore({}, step=11)
        with pytest.raises(ValueError, match="were opened to read"):
            checkpoints.save(11, {}, {})
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="there are no checkpoints in"):
        checkpoints.restore_meta()
    with pytest.raises(ValueError, match="no such directory"):
        open_checkpoints(tmp_path / "none")


def test_bad_settings_and_unwritable_directory(tmp_path):
    with pytest.raises(ValueError, match="every=0 steps, keep=3: both must be at least 1"):
        open_checkpoints(tmp_path, every=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write checkpoints to .*file/checkpoints: .*choose another workdir"):
        open_checkpoints(tmp_path / "file" / "checkpoints", every=1)


def test_a_kill_during_a_save_leaves_the_one_before(tmp_path):
    """kill -9 while the second of two is being written: the first loads, the second can be written again."""
    program = """
        import sys, jax.numpy as jnp
        from weathermixer.training.checkpoint import open_checkpoints
        with open_checkpoints(sys.argv[1], every=1) as checkpoints:
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
    with open_checkpoints(tmp_path, every=1) as checkpoints:
        assert checkpoints.steps() == [1]
        target = {"x": jax.ShapeDtypeStruct((64,), jnp.float32, sharding=sharding(make_mesh(1, 1, 1), None))}
        np.testing.assert_array_equal(np.asarray(checkpoints.restore(target)["x"]), 1.0)
        assert checkpoints.save(2, {"x": jnp.full((64,), 2.0)}, {})
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2]
