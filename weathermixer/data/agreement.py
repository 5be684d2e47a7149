"""Agreement of processes on rows that cannot be read, through JAX's coordination service and without the devices."""

import json

import jax

# longer than any read that comes to an end; a process that died ends the others by its missing heartbeat
_PATIENCE_MILLISECONDS = 3_600_000


class Agreement:
    """Unions of what each process found, one per tag; every process has to ask with the same tags in the same order."""

    def __init__(self, name: str):
        self._name = name
        self._previous: str | None = None

    def reach(self, tag: str, failed: dict[int, str]) -> dict[int, str]:
        """The failed rows of all processes, each with a message."""
        if jax.process_count() == 1:
            return failed
        # device collectives would race with the training step's: the key-value store is the only other way that
        # processes have, and JAX has no public name for it
        from jax._src.distributed import global_state

        client = global_state.client
        prefix = f"{self._name}/{tag}"
        mine = f"{prefix}/{jax.process_index()}"
        client.key_value_set(mine, json.dumps(failed))
        client.wait_at_barrier(prefix.replace("/", "-"), _PATIENCE_MILLISECONDS)
        if self._previous is not None:  # everybody has read it, having come here
            client.key_value_delete(self._previous)
        self._previous = mine
        found: dict[int, str] = {}
        for _, text in client.key_value_dir_get(prefix + "/"):
            found |= {int(row): problem for row, problem in json.loads(text).items()}
        return dict(sorted(found.items()))
