"""Checkpoints of a training run by Orbax, and embsim's own to move a run between backends.

with Checkpoints("run/checkpoints", embedding) as checkpoints:
    state = TrainState(embedding.init(), carry)
    if checkpoints.latest is not None:
        state, extra = checkpoints.restore(carry)
    data = batches_from(state.step)
    train(embedding, dense_step, data, state, schedule=schedule, pause_every=1000,
          on_pause=lambda pipeline: checkpoints.save(pipeline.state, {"seed": 7}))
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from embsim._numbered import find_checkpoint
from embsim._saved import load_state, saved_state
from embsim.checkpoint import Group, load_arrays, save_arrays
from embsim.errors import CheckpointError
from embsim.pending import drained_rows
from embsim.schedule import Progress, Schedule, sequential

from ._orbax import ITEM, Handler, read_arrays, read_manifest, read_table, save_args
from ._pending import to_devices, to_host
from ._saved import SavedRun, between_steps, saved_run
from .backend import Held, JaxBackend
from .embedding import Embedding
from .train_state import TrainState

GROUP = "embedding"  # as TPUEmbedding.save names it


class Checkpoints:
    """Numbered by training step, the newest `keep` of them; each process writes its shards.

    Killed at any moment, those that were complete stay readable: one is written aside and renamed.
    Not for several jobs at once that save in one directory; any number may restore.

    Args:
      directory: on a file system that all processes share; made by the first save.
      embedding: tables, features and mesh of the run.
      keep: after each save delete all but the newest `keep`. None: all stay.
      asynchronous: `save` returns when the arrays are copied to the host, and files are written
        meanwhile. False: when all is on the disk.

    Use it as a context manager, or call `close`: it waits for the save under way.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        embedding: Embedding,
        *,
        keep: int | None = 3,
        asynchronous: bool = True,
    ) -> None:
        if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
            raise ValueError(
                f"Checkpoints: keep is {keep!r}; it must be an int >= 1, or None to keep all"
            )
        self.directory = Path(directory).absolute()
        self.embedding = embedding
        self._keep = keep
        self._asynchronous = asynchronous
        self._handler = Handler()
        self._manager: ocp.CheckpointManager | None = None  # made by the first save

    @property
    def steps(self) -> list[int]:
        """Of the complete checkpoints, ascending."""
        if not self.directory.is_dir():
            return []
        found = ocp.utils.checkpoint_steps(self.directory)  # of any name that ends in a number
        return sorted(step for step in found if (self.directory / str(step) / ITEM).is_dir())

    @property
    def latest(self) -> int | None:
        """The training step of the newest complete checkpoint; None if there is none."""
        return max(self.steps, default=None)

    def save(self, state: TrainState, extra: Any = None) -> None:
        """Begin to save a run between two training steps, updates that are pending included, and
        `extra`, any JSON. All processes call it.

        The arrays of `state` may be donated as soon as this returns: they were copied, or on a CPU
        device are kept until they are written, and JAX then copies what is donated. An error
        of the writing itself is raised by the next call of `save`, `wait` or `close`.

        Raises:
          ValueError: a step that is not after the newest checkpoint; a state whose next lookup has
            happened.
          TypeError: no TrainState; a leaf of the carry that is no array; `extra` that is no JSON.
        """
        arrays, meta = saved_run(self.embedding, state)
        meta["run"]["extra"] = extra
        try:
            meta = json.loads(json.dumps(meta))  # what `extra` is now: it is written later
        except (TypeError, ValueError) as error:
            raise TypeError(f"save: extra is {extra!r}: {error}; it must be JSON") from error
        self.wait()
        if self.latest is not None and state.step <= self.latest:
            raise ValueError(
                f"save: training step {state.step}: '{self.directory}' holds a checkpoint of step "
                f"{self.latest}, and steps must increase; to go on from an older one use another "
                "directory, or delete the newer ones"
            )
        self._handler.meta = meta
        self._writer().save(state.step, args=save_args(arrays))

    def restore(self, carry: Any = None, step: int | None = None) -> tuple[TrainState, Any]:
        """The run of training step `step`, or the newest, and `extra`. All processes call it.

        Under the schedule that it had it goes on bit for bit on a mesh of the size on which it was
        saved, on another one up to the order of sums; under another schedule as after a drain.

        Args:
          carry: structure, shapes and dtypes of the carry, as arrays, which are not changed, or
            jax.ShapeDtypeStructs. On the same mesh its leaves are split as they were when saved,
            else as those given, if they are on the mesh.

        Memory: where the mesh has the size that it had, what is restored and what Orbax reads at
        once; else on the host a process's part of one table or slot, too, and 64 MiB. Every file
        is read twice: its checksum comes first.

        Raises:
          CheckpointError: no checkpoint of that step; a file missing, truncated or altered; other
            tables, slots or carry.
        """
        self.wait()
        found = self.steps
        number = max(found, default=None) if step is None else step
        if number not in found:
            raise CheckpointError(
                f"restore: found checkpoints of the steps {found} in '{self.directory}', required "
                f"{'any' if step is None else step}"
            )
        directory = self.directory / str(number) / ITEM
        run = SavedRun(read_manifest(directory), self.embedding, carry)
        arrays = read_arrays(directory, run.wanted())
        for key, (rows, width) in run.tables().items():
            if key not in arrays:
                arrays[key] = read_table(directory, key, rows, width, self.embedding.shards)
        return run.state(arrays), run.meta["run"]["extra"]

    def wait(self) -> None:
        """Until the save under way is complete. Raises its error, if it failed."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and end the threads; `save` may be called again."""
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _writer(self) -> ocp.CheckpointManager:
        if self._manager is None:
            registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
            registry.add(ITEM, ocp.args.PyTreeSave, self._handler)
            keep = self._keep
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=None
                    if keep is None
                    else ocp.checkpoint_managers.LatestN(keep),
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=self._asynchronous,
                ),
                handler_registry=registry,
            )
        return self._manager


def to_embsim(
    path: str | os.PathLike[str],
    embedding: Embedding,
    state: TrainState,
    *,
    keep: int | None = None,
) -> str:
    """Write tables, slots, counts and pending updates as TPUEmbedding.save does; where it is.

    TPUEmbedding(..., schedule=its schedule, backend=any).restore(path) goes on from there: bit for
    bit where sums are exact. The carry is not in it. Holds all tables on the host; of several
    processes all call it, and the first writes.

    Raises:
      ValueError: a state whose next lookup has happened.
      OSError: the disk is full, or cannot be written.
    """
    schedule = between_steps("to_embsim", state)
    pending = [to_host(embedding, each) for each in state.pending]
    backend = JaxBackend(embedding.shards.mesh)
    held = backend.hold(Held(embedding.specs, state.tables, embedding.kernels, state.version))
    patches = drained_rows(backend, held, embedding.specs, pending)
    progress = Progress(state.step, state.step, state.start)
    tables = embedding.get(state.tables, state.version)
    arrays, meta = saved_state(tables, schedule, progress, pending, patches)
    if jax.process_index() == 0:
        save_arrays(path, {GROUP: Group(arrays, {"object": meta})}, keep)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("embsim: to_embsim")
    return str(find_checkpoint(path))


def from_embsim(
    path: str | os.PathLike[str],
    embedding: Embedding,
    carry: Any = None,
) -> TrainState:
    """A run that TPUEmbedding.save or `to_embsim` wrote, with `carry`: the newest below `path`.

    The carry is not in it: give that of the same training step. Under another schedule than the
    saved one the run goes on as after a drain, as TPUEmbedding.restore does it.

    Raises:
      CheckpointError: no checkpoint there; a file missing, truncated or altered; other tables or
        slots.
    """
    group = load_arrays(path, [GROUP])[GROUP]
    meta = group.meta["object"]
    schedule = Schedule(**meta["schedule"]) if "schedule" in meta else sequential()
    tables, progress, pending = load_state(group.arrays, meta, embedding.specs, schedule)
    return TrainState(
        embedding.put(tables),
        carry,
        progress.dequeued,
        tables.version,
        progress.start,
        tuple(to_devices(embedding, each) for each in pending),
        schedule,
    )
