"""The training loop: steps, evaluations, checkpoints, and a stop at every step.

Where a run stands is three integers (epoch, batch, step); what it has learnt is the network, the
stepper; what it has told is the series. A checkpoint holds all of it, and every draw is a function
of the seed and the position, so a resumed run continues bit for bit on the CPU.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError, StopRequested
from stiefel.run import Run
from stiefel.specs.fitting import lone_example
from stiefel.specs.training import TrainingSpec
from stiefel.training.clock import Clock
from stiefel.training.data.dataset import Batch, Dataset, mix
from stiefel.training.determinism import seed
from stiefel.training.evaluation import Evaluation, evaluate, loss_of
from stiefel.training.optimizers import rate_factor
from stiefel.training.series import Series
from stiefel.training.snapshots import Snapshots
from stiefel.training.stepper import Stepper
from stiefel.training.world import World


@dataclass
class Position:
    """The next batch to train on, and the number of steps taken."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass
class Best:
    """The best evaluation so far, its step, and how many evaluations have passed since."""

    loss: float = math.inf
    accuracy: float | None = None
    step: int = 0
    waited: int = 0


class Loop:
    """One run of ``spec`` on ``network``, in one of ``world``'s processes."""

    def __init__(
        self,
        spec: TrainingSpec,
        network: nn.Module,
        dataset: Dataset,
        stepper: Stepper,
        run: Run,
        world: World,
    ) -> None:
        self.spec, self.network, self.dataset = spec, network, dataset
        self.stepper, self.run, self.world = stepper, run, world
        self.position, self.best = Position(), Best()
        self.series = Series(run if world.first else None)
        self.per_epoch = dataset.batches_per_epoch(spec.batch_size)
        self.steps = min(spec.epochs * self.per_epoch, spec.max_steps or 2**62)
        self._snapshots = Snapshots(run.state, keep=spec.keep_checkpoints)
        self._forward = world.wrap(network)
        half = spec.precision == "float16"
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=half)
        self._own_losses: list[Tensor] = []  # of this process, not yet averaged
        self._losses: list[float] = []  # of all processes, not yet logged
        self.clock = Clock()

    def train(self) -> Evaluation:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            InvalidInputError: the loss stopped being a number, which names the step; or batch
                normalisation is left with one example.
            StopRequested: a stop was asked for; a checkpoint has been made.
        """
        self._resume()
        self.network.train()
        while self.position.step < self.steps and not self._out_of_patience():
            self._epoch()
        self.stepper.finish()
        return self._evaluation()

    def _epoch(self) -> None:
        position, spec = self.position, self.spec
        every = spec.checkpoint_every or self.per_epoch
        batches = self.dataset.train(
            epoch=position.epoch, first=position.batch, batch_size=spec.batch_size
        )
        for batch in batches:
            self._step(batch)
            position.batch += 1
            position.step += 1
            last = position.batch == self.per_epoch or position.step == self.steps
            if last:
                position.epoch, position.batch = position.epoch + 1, 0
                self._evaluate()
            stop = self.world.agree(self.run.stop_requested)
            if last or stop or position.step % every == 0:
                self._checkpoint()
            if position.step == self.steps:
                return

    def _step(self, batch: Batch) -> None:
        step, spec = self.position.step, self.spec
        # Dropout draws from the default generator: a function of the step and the process, so
        # that there is no generator to save and no process to forget.
        seed(mix(spec.seed, step, self.world.rank), self.world.device)
        self.stepper.milestone(step / self.steps)
        self.stepper.zero_grad()
        self._own_losses.append(self._backward(batch))
        self.clock.examples += len(batch.x)
        if (step + 1) % spec.log_every == 0:
            self._log(step + 1)
        rate = rate_factor(
            spec.schedule, step=step, steps=self.steps, steps_per_epoch=self.per_epoch
        )
        skipped = self.stepper.step(rate=rate, clip_norm=spec.clip_norm, scaler=self._scaler)
        if self.world.first:
            if skipped:
                self.run.event("job.log", {"step": step + 1, "skipped": list(skipped[:20])})
            self.run.progress(step + 1, self.steps, unit="step")

    def _backward(self, batch: Batch) -> Tensor:
        """Accumulate gradients over ``accumulate`` slices; return the mean loss, detached.

        The average over processes is the mean over the batch, equal shares or not.
        """
        total = torch.zeros((), device=self.world.device)
        mine = self.world.share(batch)
        # As many on every process, whoever has the odd example: each backward pass is a meeting.
        slices = min(self.spec.accumulate, len(batch.y) // self.world.size)
        for x, y in zip(mine.x.tensor_split(slices), mine.y.tensor_split(slices), strict=True):
            weight = len(y) * self.world.size / len(batch.y)
            with self._autocast():
                answer = self._answer(x, len(batch.y))
            smoothing = self.spec.label_smoothing
            loss = loss_of(answer.float(), y, self.dataset.signature, label_smoothing=smoothing)
            self._scaler.scale(loss * weight).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * weight
        return total

    def _answer(self, x: Tensor, batch: int) -> Tensor:
        """The network's answer to a slice of ``batch`` examples."""
        try:
            answer: Tensor = self._forward(x)
        except ValueError as error:
            # Only the network itself knows what it normalises: torch refuses when it comes to it.
            if len(x) == 1 and "more than 1 value per channel" in str(error):
                raise lone_example(self.spec, batch) from error
            raise
        return answer

    def _autocast(self) -> AbstractContextManager[object]:
        if self.spec.precision == "float32":
            return nullcontext()
        dtype = torch.bfloat16 if self.spec.precision == "bfloat16" else torch.float16
        return torch.autocast(self.world.device.type, dtype=dtype)

    def _log(self, step: int) -> None:
        """One point for the mean loss since the last; the only place that waits for the device."""
        self._collect(step)
        self.series.add(step, {"loss": math.fsum(self._losses) / len(self._losses)})
        self._losses.clear()

    def _collect(self, step: int) -> None:
        """Average the losses of the steps up to ``step`` and see that they are numbers."""
        if not self._own_losses:
            return
        losses = self.world.average(torch.stack(self._own_losses)).tolist()
        self._own_losses.clear()
        for index, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise _not_finite(f"the training loss is {loss}", step - len(losses) + 1 + index)
        self._losses += losses

    def _evaluate(self) -> None:
        if self._losses or self._own_losses:
            self._log(self.position.step)
        found = self._evaluation()
        self.series.add(self.position.step, found.values() | dict(self.stepper.measures()))
        best = self.best
        if found.better_than(Evaluation(best.loss, best.accuracy)) or not best.step:
            self.best = Best(found.loss, found.accuracy, self.position.step)
        else:
            best.waited += 1

    def _evaluation(self) -> Evaluation:
        """The first process evaluates for all: averages of normalisation layers are its own."""
        regression = self.dataset.signature.regression
        values = [0.0, 0.0]
        if self.world.first:
            found = evaluate(
                self.network,
                self.dataset,
                batch_size=self.spec.batch_size,
                device=self.world.device,
            )
            values = [found.loss, found.accuracy or 0.0]
        loss, accuracy = self.world.tell(values)
        return Evaluation(loss, None if regression else accuracy)

    def _out_of_patience(self) -> bool:
        return self.spec.patience is not None and self.best.waited >= self.spec.patience

    def _checkpoint(self) -> None:
        """Write and report a checkpoint; a stop that was asked for ends the run here."""
        self._collect(self.position.step)
        self._refuse_broken_weights()
        if self.world.first:
            run = {
                "position": asdict(self.position),
                "best": asdict(self.best),
                "stepper": self.stepper.state_dict(),
                "scaler": self._scaler.state_dict(),
                "series": self.series.state_dict(),
                "losses": self._losses,
                "clock": self.clock.state_dict(),
            }
            step = self.position.step
            self._snapshots.save(step, self.network.state_dict(), run, self.best.step)
        self._report_checkpoint()

    def _report_checkpoint(self) -> None:
        stop = None
        try:
            self.run.checkpoint(self.position.step)
        except StopRequested as request:
            stop = request
        if self.world.agree(stop is not None):  # no process may wait for one that has stopped
            raise stop or StopRequested(f"stopped at step {self.position.step}")

    def _refuse_broken_weights(self) -> None:
        """A checkpoint is for going on from: no NaN may enter the newest one."""
        for name, parameter in self.network.named_parameters():
            if not parameter.isfinite().all():
                raise _not_finite(f"{name} holds NaN or infinity", self.position.step, name)

    def _resume(self) -> None:
        found = self._snapshots.newest()
        if found is None:
            return
        weights, run = found
        self.network.load_state_dict(weights)
        self.stepper.load_state_dict(run["stepper"])
        self._scaler.load_state_dict(run["scaler"])
        self.series.load_state_dict(run["series"])
        self.clock.load_state_dict(run["clock"])
        self.position = Position(**run["position"])
        self.best = Best(**run["best"])
        self._losses = [float(loss) for loss in run["losses"]]

    def return_to_best(self) -> Evaluation:
        """Put the network back to its best evaluation, whose checkpoint is always kept; evaluate.

        Training is over: the run as a whole does not go back. Every process must take part.
        """
        for parameter in self.network.parameters():
            parameter.grad = None  # its room is needed
        weights, run = self._snapshots.load(self.best.step)
        self.network.load_state_dict(weights)
        self.stepper.load_state_dict(run["stepper"])
        self.stepper.finish()
        return self._evaluation()


def _not_finite(what: str, step: int, tensor: str | None = None) -> InvalidInputError:
    return InvalidInputError(
        f"{what} at step {step}",
        code="loss_not_finite",
        fix="lower optimizer.learning_rate, set clip_norm, or check the scale of the data; "
        "checkpoints made before are kept",
        tensor=tensor,
        field="/optimizer/learning_rate",
    )
