"""Agreement of processes on rows that cannot be read, through JAX's coordination service and without the devices."""

import json
import threading

import jax

_POLL_SECONDS = 0.01


class Closed(Exception):
    """Nobody waits for this any more."""


class Agreement:
    """Unions of what each process found, one per tag; every process has to ask with the same tags in the same order."""

    def __init__(self, name: str):
        self._name = name
        self._previous: str | None = None

    def reach(self, tag: str, failed: dict[int, str], closed: threading.Event) -> dict[int, str]:
        """The failed rows of all processes, each with a message; raises Closed once `closed` is set."""
        if jax.process_count() == 1:
            return failed
        # device collectives would race with the training step's: the key-value store is the only other way that
        # processes have, and JAX has no public name for it
        from jax._src.distributed import global_state

        client = global_state.client
        mine = f"{self._name}/{tag}/{jax.process_index()}"
        client.key_value_set(mine, json.dumps(failed))
        # asked for again and again: a barrier could not be left when another process closes its loader earlier
        while len(answers := client.key_value_dir_get(f"{self._name}/{tag}/")) < jax.process_count():
            if closed.wait(_POLL_SECONDS):
                raise Closed
        if self._previous is not None:  # everybody has read it, having come here
            client.key_value_delete(self._previous)
        self._previous = mine
        found = {int(row): problem for _, text in answers for row, problem in json.loads(text).items()}
        return dict(sorted(found.items()))
