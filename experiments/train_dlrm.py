"""Train DLRM or DCNv2 on click-through data, with the embeddings pipelined by a schedule.

    python -m experiments.train_dlrm --data synthetic --schedule 'stale(1)' --steps 2000
    python -m experiments.train_dlrm --data criteo --path day_*.gz --dim 64 --devices all
    python -m experiments.train_dlrm --data flights --out runs/flights    again: goes on with it

Every --every steps the model is scored on held-out samples, which changes no number of the
training, a row is appended to OUT/curve.jsonl, and a checkpoint is saved, asynchronously. A run
that was killed, at any time, and is started again with the same arguments goes on from its last
checkpoint; on the same machine its curve is that of a run that was never stopped.

Runs on what JAX finds: CPU, GPU, TPU. --virtual 8 makes 8 devices of one CPU. Of the data only
Criteo's has numeric features; without them DLRM sees products of embeddings alone and learns less
than DCNv2.
"""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

import embsim
from embsim.schedule import schedule_of

if TYPE_CHECKING:
    from embsim_tpu import Pipeline

    from .data.streams import Stream

OPTIMIZERS = {
    "sgd": embsim.SGD,
    "adagrad": embsim.Adagrad,
    "rowwise_adagrad": embsim.RowwiseAdagrad,
    "adam": embsim.Adam,
    "ftrl": embsim.FTRL,
}
DATA = ("flights", "synthetic", "criteo")
PRESETS = ("static", "drift", "campaign", "session", "meta2021-like")
PLACES = ("out", "tensorboard", "virtual")  # do not change the numbers


@dataclass(frozen=True)
class Options:
    """The command line. All but OUT and TensorBoard's directory decide the numbers."""

    data: str = "synthetic"
    path: tuple[str, ...] = ()
    preset: str = "static"
    rows: int = 100_000
    model: str = "dlrm"
    dim: int = 16
    bottom: tuple[int, ...] = (64,)
    top: tuple[int, ...] = (128, 64)
    rank: int = 64
    schedule: str = "tpu_embedding_pipelined"
    optimizer: str = "adagrad"
    learning_rate: float = 0.05
    dense_learning_rate: float = 1e-3
    batch_size: int = 512
    steps: int = 2000
    every: int = 200
    held_out: int = 20
    seed: int = 0
    devices: str = "1"
    virtual: int | None = None
    out: str = "results/train_dlrm"
    tensorboard: str | None = None


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Train as the command line says. Returns the rows of the curve."""
    options = _parse(arguments)
    if options.virtual is not None:  # before JAX looks for devices
        flag = f"--xla_force_host_platform_device_count={options.virtual}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    return Run(options).train()


class Run:
    """One training run in its directory."""

    def __init__(self, options: Options) -> None:
        import optax

        from embsim_tpu.checkpoint import Checkpoints

        from . import training
        from .models import dlrm

        self.options = options
        self.out = Path(options.out)
        self.stream = _stream(options)
        embedding_optimizer = OPTIMIZERS[options.optimizer](learning_rate=options.learning_rate)
        self.embedding = training.embedding_of(
            self.stream, options.dim, embedding_optimizer, training.mesh_of(options.devices)
        )
        shape = self.stream.num_dense, len(self.stream.names), options.dim
        self.model = (
            dlrm.dlrm(*shape, options.bottom, options.top)
            if options.model == "dlrm"
            else dlrm.dcnv2(*shape, options.bottom, options.top, rank=options.rank)
        )
        self.dense_optimizer = optax.adam(options.dense_learning_rate)
        training.check_batch_size(options.batch_size, self.embedding)
        self._check_directory()  # the last check: a refused command leaves nothing there
        self.checkpoints = Checkpoints(self.out / "checkpoints", self.embedding)
        self.console = Console(
            stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self.rows: list[dict[str, Any]] = []

    def train(self) -> list[dict[str, Any]]:
        """To the last step. Returns the rows of the curve, those before a restart too."""
        from embsim_tpu import train

        from . import training

        options, state = self.options, self._first_state()
        self._say_what_begins(state.step)
        losses: list[Any] = []
        with Progress(console=self.console, disable=not self.console.is_terminal) as progress:
            task = progress.add_task("training", total=options.steps, completed=state.step)

            def on_step(step: int, loss: Any) -> None:
                losses.append(loss)
                progress.update(task, completed=step + 1)

            def on_pause(pipeline: "Pipeline") -> None:
                self._score(pipeline, losses)
                losses.clear()

            batches = self.stream.batches(options.batch_size, start=state.step)
            with self.checkpoints:
                self._clock = time.perf_counter(), state.step
                train(
                    self.embedding,
                    training.dense_step(self.model, self.dense_optimizer),
                    (training.example_of(self.stream, each) for each in batches),
                    state,
                    schedule=schedule_of(options.schedule),
                    steps=options.steps,
                    pause_every=options.every,
                    on_step=on_step,
                    on_pause=on_pause,
                )
        self.console.print(f"{self.out / 'curve.jsonl'} has the curve")
        return self.rows

    def _say_what_begins(self, step: int) -> None:
        options, shards = self.options, self.embedding.shards
        self.console.print(
            f"{options.model} on {options.data}, {options.schedule}, {options.batch_size} samples "
            f"a step, on {shards.size} x {shards.platform}; writes to {self.out}"
        )
        if step >= options.steps:
            self.console.print(f"is finished: {step} of {options.steps} steps; more with --steps")
        elif step:
            self.console.print(f"goes on from step {step}, of {options.steps}")

    def _first_state(self) -> Any:
        """Of the last checkpoint, or of the beginning."""
        from . import training

        state = training.initial_state(
            self.embedding, self.model, self.dense_optimizer, self.options.seed
        )
        if self.checkpoints.latest is None:
            return state
        state, extra = self.checkpoints.restore(state.carry)
        self.rows = list(extra["rows"])  # what a killed run wrote later is written again
        self._write()
        return state

    def _score(self, pipeline: "Pipeline", losses: list[Any]) -> None:
        """A row of the curve, and a checkpoint that has it."""
        import numpy as np

        from . import training

        options, step = self.options, pipeline.state.step
        loss = float(np.mean([float(each) for each in losses]))
        (start, first), now = self._clock, time.perf_counter()
        scores = training.evaluate(
            pipeline, self.model, self.stream, options.batch_size, options.held_out
        )
        row = {"step": step, "train_log_loss": loss, **asdict(scores)}
        self.rows.append(row)
        self._write()
        speed = (step - first) / (now - start)
        self.console.print(
            f"step {step:>7}  train log loss {loss:.4f}  AUC {scores.auc:.4f}  log loss "
            f"{scores.log_loss:.4f}  {speed:.1f} steps/s"
        )
        self._tensorboard(row, speed)
        self.checkpoints.save(pipeline.state, {"rows": self.rows})
        self._clock = time.perf_counter(), step

    def _write(self) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        written = self.out / "curve.jsonl.part"
        written.write_text(lines)
        written.replace(self.out / "curve.jsonl")  # whole at any time

    def _tensorboard(self, row: dict[str, Any], steps_per_second: float) -> None:
        if self.options.tensorboard is None:
            return
        from tensorboardX import SummaryWriter

        with SummaryWriter(self.options.tensorboard) as writer:
            for name in ("train_log_loss", "log_loss", "auc"):
                writer.add_scalar(name, row[name], row["step"])
            writer.add_scalar("steps_per_second", steps_per_second, row["step"])

    def _check_directory(self) -> None:
        """A run goes on in its directory; another one is refused there."""
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "options.json"
        mine = {k: v for k, v in asdict(self.options).items() if k not in PLACES and k != "steps"}
        mine = json.loads(json.dumps(mine))
        if path.exists():
            found = json.loads(path.read_text())
            other = {k: (found.get(k), v) for k, v in mine.items() if found.get(k) != v}
            if other:
                raise SystemExit(
                    f"{self.out} has a run with other options, (there, here): {other}; pass the "
                    "same ones to go on with it, or another --out"
                )
        else:
            path.write_text(json.dumps(mine, indent=1))


def _stream(options: Options) -> "Stream":
    if options.data == "criteo":
        from .data import criteo

        if not options.path:
            raise SystemExit("--data criteo needs --path: the files, or a directory of them")
        return criteo.stream(options.path, num_buckets=options.rows)
    if options.data == "flights":
        from .data import flights_stream

        one = flights_stream.stream("shuffled", seed=options.seed).num_steps(options.batch_size)
        epochs = -(-options.steps // one)
        return flights_stream.stream("shuffled", epochs=epochs, seed=options.seed)
    from .data import synthetic

    return synthetic.stream(options.preset, rows=options.rows, seed=options.seed)


def _parse(arguments: list[str] | None) -> Options:
    default = Options()
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train_dlrm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", choices=DATA, default=default.data)
    add("--path", nargs="+", default=[], help="Criteo-format files, or a directory of them")
    add("--preset", choices=PRESETS, default=default.preset, help="of the synthetic data")
    add("--rows", type=int, default=default.rows, help="of the largest table; of each, for criteo")
    add("--model", choices=("dlrm", "dcnv2"), default=default.model)
    add("--dim", type=int, default=default.dim, help="width of the embeddings")
    add("--bottom", type=_widths, default=default.bottom, help="hidden layers, e.g. 512,256")
    add("--top", type=_widths, default=default.top, help="hidden layers, e.g. 1024,1024,512,256")
    add("--rank", type=int, default=default.rank, help="of DCNv2's cross layers")
    add("--schedule", default=default.schedule, help="e.g. sequential, stale(2), semi_sync(1000)")
    add("--optimizer", choices=tuple(OPTIMIZERS), default=default.optimizer)
    add("--learning-rate", type=float, default=default.learning_rate)
    add("--dense-learning-rate", type=float, default=default.dense_learning_rate)
    add("--batch-size", type=int, default=default.batch_size)
    add("--steps", type=int, default=default.steps)
    add("--every", type=int, default=default.every, help="steps between scores and checkpoints")
    add("--held-out", type=int, default=default.held_out, help="batches that are scored")
    add("--seed", type=int, default=default.seed)
    add("--devices", default=default.devices, help="how many, or all")
    add("--virtual", type=int, help="make so many devices of one CPU")
    add("--out", default=default.out)
    add("--tensorboard", help="write event files to this directory")
    values: dict[str, Any] = vars(parser.parse_args(arguments))
    try:
        schedule_of(values["schedule"])
    except ValueError as error:
        parser.error(str(error))
    values["path"] = tuple(values["path"])
    return Options(**values)


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(width) for width in text.split(",") if width)


if __name__ == "__main__":
    main()
