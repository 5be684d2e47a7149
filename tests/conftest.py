"""Every test runs on eight simulated CPU devices, with shapes and types of `weathermixer`'s functions checked."""

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# jaxtyping signatures are checked at run time in the tests alone; must come before the first import of the package
install_import_hook("weathermixer", "beartype.beartype")


@pytest.fixture(autouse=True)
def no_mesh_left_over():
    """A test that sets a mesh must not change what the next one sees."""
    before = jax.sharding.get_mesh() if hasattr(jax.sharding, "get_mesh") else None
    yield
    if before is not None:
        assert jax.sharding.get_mesh() == before, "this test left a mesh set: use `with use_mesh(mesh):`"
