"""The training loop."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from ..acceleration import compiled
from ..build import augmentation_of, build_denoiser, build_objective, choose_device
from ..checkpoint import (
    PARTS,
    Checkpoint,
    newest_whole,
    read_checkpoint,
    read_manifest,
    replace_synced,
    write_checkpoint,
)
from ..conditions import rows_of
from ..config import OWN_IMAGES, OWN_OBJECTIVE, Config, TrainingConfig
from ..console import counted, say
from ..data.examples import Examples
from ..data.images import read_images
from ..data.loading import Loaded, load_own, load_source
from ..data.stream import Stream, held_out_split
from ..diffusion.denoiser import Denoiser
from ..diffusion.objectives import Objective
from ..diffusion.timestep_sampling import timestep_sampler
from ..environment import describe, device_name
from ..errors import InkdropError
from ..launcher import launched
from ..metrics import append_metrics, rewind_metrics, sync_metrics
from ..networks.embedding import Condition, condition_of, without
from ..processes import ProcessLost, current, joined, telling_of_lost_processes
from ..randomness import generator, normal, torch_seeded
from ..ranges import range_mistake
from ..run import (
    Run,
    kept_vectors,
    read_environment,
    write_config,
    write_data,
    write_example,
    write_vectors,
)
from .deterministic import cost, deterministic
from .early import due, initial_share
from .ema import EMA
from .folder import RunFolder
from .guards import (
    NonfinitePolicy,
    TrainingDiverged,
    describe_nonfinite,
    is_fault,
    largest_gradient,
    where_it_began,
)
from .learning_rate import learning_rate_factor
from .looking import Looking, Setting
from .losses import LossWindow
from .memory import find_parts, find_parts_on_cpu, is_out_of_memory, out_of_memory
from .muon import Muon, matrices_of
from .parallel import Parallel, same_weights
from .progress import TrainingProgress
from .saving import Saver
from .sharded_saving import ShardedWriter
from .signals import handling_stop_signals
from .state import TrainingState

_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
_INITIAL = 0.1  # of the initial weights in the average at the end, from where on a warning is due
_WORTH_COMPILING = 10_000  # steps, at milliseconds won each, for a minute or two
_GRACE = {"cuda": 5.0, "cpu": 20.0}  # seconds that a process may stay stuck after a signal


def train(
    config: Config,
    out: str | Path | None = None,
    *,
    resume: str = "auto",
    source: Any = None,
    network: nn.Module | None = None,
    objective: Objective | None = None,
    progress: bool = True,
) -> Run:
    """Train what a configuration describes, or go on where its folder left off.

    Args:
        config: the configuration.
        out: the run folder; runs/NAME by default.
        resume: "auto" goes on with a run of the same configuration; "never" refuses a folder that
            holds one.
        source: images or points of one's own instead of config.data's: a `Source`, an array or
            tensor, a sequence of images or a map-style data set, with labels or without.
        network: a module (x, t, condition) of one's own, with config.network = None.
        objective: losses (B,) of one's own, called as (denoiser, x_start, t, noise, condition);
            for instance `objectives.snr_weighted(f)` with a function f of the SNR.
        progress: show it: a bar in a terminal, a line now and then elsewhere.

    Started by torchrun, the processes share every batch, and all return the run.

    Returns:
        The run. SIGINT, SIGTERM and SIGUSR1 save and return early: then `run.step` is below the
        last step, and the same call goes on.

    Raises:
        InkdropError: for a mistake in any of it, or a folder that holds something else, before
            anything is written.
        TrainingDiverged: when the loss or a gradient is not finite; the last checkpoint stands.
    """
    with joined() as processes:
        console = Console() if progress and processes.first else None
        trainer = Trainer(
            config,
            out,
            resume=resume,
            source=source,
            network=network,
            objective=objective,
            console=console,
        )
        trainer.run()
        return Run(trainer.out, network=network, device=config.training.device)


class _Drawn(NamedTuple):
    """This process's rows of a batch, and the noise on them."""

    address: int
    x_start: Tensor
    condition: Tensor | Condition | None
    noise: Tensor


class Trainer:
    """A training in progress. Making one checks everything and writes nothing; `run` trains.

    The arguments are those of `train`, but for `loaded`, config.data's examples if they are loaded
    already, and the console to show progress on (None: silent).
    """

    def __init__(
        self,
        config: Config,
        out: str | Path | None = None,
        *,
        resume: str = "auto",
        source: Any = None,
        loaded: Loaded | None = None,
        network: nn.Module | None = None,
        objective: Objective | None = None,
        console: Console | None = None,
    ) -> None:
        self.config = config = config.model_copy(deep=True)
        if source is not None:
            config.data.source = OWN_IMAGES
        if objective is not None:
            config.objective = OWN_OBJECTIVE
        self._objective = objective or build_objective(config)
        self.out = Path(out) if out is not None else Path("runs") / config.name
        self.console = console
        self.processes = current()
        self.stopped_by: signal.Signals | None = None
        self._signalled = 0
        self._parent = os.getppid()
        self.folder = RunFolder(self.out)
        try:
            self.resumed_from = self.processes.on_first(
                lambda: self.folder.checkpoint_to_resume(config, resume, self._say)
            )
            self._dropout_of_before = self.processes.on_first(self.folder.label_dropout)
            self._set_up(source, loaded, network)
        except BaseException:
            self.folder.let_go()  # whoever catches it may keep this object alive
            raise

    def _set_up(self, source: Any, loaded: Loaded | None, network: nn.Module | None) -> None:
        """Load the data and build what is trained on them, as it was left."""
        config = self.config
        self.device = choose_device(config.training.device)
        self.autocast_dtype, self.dtype = _precision(config.training.precision, self.device)
        self._autocast = partial(
            torch.autocast,
            self.device.type,
            dtype=self.autocast_dtype,
            enabled=self.autocast_dtype is not None,
        )
        with self.processes.one_here_first("data"):
            if source is not None:
                loaded = load_own(source, config.data, self.console)
            self.loaded = loaded or load_source(
                config.data, self.console, conditional=config.conditional or config.told is not None
            )
        train_set, test_set = self.loaded.source.train, self.loaded.source.test
        images, self.held_out = held_out_split(train_set, test_set, config.data.held_out)
        if self.held_out is not None and not self.held_out.in_memory:
            self.held_out = read_images(self.held_out)  # once: each measurement asks for all of it
        self.train_set = images
        _set_condition(config, images, self._dropout_of_before)
        self._vectors = None if config.told != "vector" else kept_vectors(images)
        self.total = _total_steps(config.training, len(images))

        with torch_seeded(config.seed, "initial weights"):
            denoiser = build_denoiser(config, images.shape, network)
        if self.dtype == torch.float64:
            denoiser.network.double()
        if network is not None:
            if config.training.parallel == "fsdp":  # it would be changed in place
                denoiser.network = copy.deepcopy(network)
            same_weights(denoiser.network, self.processes)
        self.ema = EMA(denoiser.network, config.training.ema_decay)
        self.parallel = Parallel(
            denoiser.network,
            self.device,
            self.processes,
            config.training.parallel,
            unused=config.network is None,
        )
        self.parallel.place(self.ema.network)
        self.network = self.parallel.network
        if config.training.compile == "on" and self.parallel.sharded:
            raise InkdropError(
                "a network in parts is not compiled: give --training.compile off, or "
                "--training.parallel ddp"
            )
        self.denoiser = self._denoiser_of(self.parallel.module, denoiser)
        self.averaged = self._denoiser_of(self.ema.network, denoiser)
        self.timestep_sampler = timestep_sampler(
            config.timestep_sampler, self.denoiser.schedule.timesteps
        )
        self.parameters = dict(self.network.named_parameters())
        self.optimizer = self._made_optimizer()
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.autocast_dtype == torch.float16
        )
        self.state = TrainingState(self.network, self.ema, self.optimizer, self.timestep_sampler)
        self.stream = Stream(
            images,
            config.training.batch_size,
            config.seed,
            augmentation_of(config.data),
            device=self.device,
            memory=config.data.memory,
            rank=self.processes.rank,
            world_size=self.processes.size,
        )
        share = self.stream.batch_size // self.processes.size
        asked = config.training.accumulation
        self.accumulation = 1 if asked == "auto" else asked
        if asked == "auto" and self.parallel.sharded:
            raise InkdropError(
                "how many parts of a batch fit cannot be tried with --training.parallel fsdp: one "
                "process out of memory would leave the others waiting; give --training.accumulation"
            )
        if share % self.accumulation:
            raise InkdropError(
                f"a batch of {self.stream.batch_size} is {share} {images.noun}s for each of "
                f"{self.processes.size} processes, which cannot be split into "
                f"{self.accumulation} equal parts (accumulation)"
            )
        self.waited = 0.0
        self._coming: _Drawn | None = None
        if config.logging.tensorboard:
            _summary_writer()  # missing, it is missed before anything is written
        self.step = self._saved_step = 0
        self._saved_at = time.monotonic()
        self._save_now = False
        self.best_held_out: float | None = None
        self.best_frechet: float | None = None
        self.nonfinite = NonfinitePolicy(config.training.on_nonfinite)
        self.saver = Saver(
            self.out / "checkpoints",
            config.logging.keep_checkpoints,
            ShardedWriter(self.processes) if self.parallel.sharded else write_checkpoint,
        )
        self.looking = Looking(
            config,
            Setting(
                self.processes, self.device, self.dtype, self._autocast, self.stream.batch_size
            ),
            self.averaged,
            self.network,
            self._objective,
            images,
            self.held_out,
            self._vectors,
            self.out,
        )
        if self.looking.frechet is not None:
            self.looking.frechet.check(config.logging.evaluate_samples)
        self.seconds = 0.0
        self.window = LossWindow()
        if self.resumed_from is not None:
            self._restore(self.resumed_from)

    def _made_optimizer(self) -> torch.optim.Optimizer:
        training, parameters = self.config.training, self.parameters.values()
        if training.optimizer == "muon":
            if self.parallel.sharded:
                raise InkdropError(
                    "muon needs whole matrices, and --training.parallel fsdp has parts of them: "
                    "give --training.optimizer adamw, or --training.parallel ddp"
                )
            return Muon(
                parameters,
                matrices_of(self.network),
                lr=training.learning_rate,
                betas=training.betas,
                weight_decay=training.weight_decay,
            )
        make: type[torch.optim.Adam] = _OPTIMIZERS[training.optimizer]
        return make(
            parameters,
            lr=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            fused=True,
        )

    def _denoiser_of(self, network: nn.Module, like: Denoiser) -> Denoiser:
        return Denoiser(network, like.schedule, like.prediction, like.shape, like.learned_variance)

    def run(self) -> None:
        """Train to the last step, or until SIGINT, SIGTERM or SIGUSR1."""
        if self.step >= self.total:
            self._say(f"{self.out} is finished: {self.step:,} of {self.total:,} steps are done")
            self.folder.let_go()
            return
        grace = _GRACE.get(self.device.type) if self.processes.size > 1 else None
        try:
            self.processes.on_first(self._prepare_folder)
            with (
                deterministic(self.config.training.deterministic),
                handling_stop_signals(self._stop, patient=launched(), grace=grace),
                telling_of_lost_processes(),
                self._telling_of_memory(),
            ):
                self._train()
        finally:
            self.folder.let_go()
        try:
            self.processes.wait_for_all(f"trained {self.out} to {self.step}")
        except ProcessLost:
            if self.stopped_by is None or not self._launcher_is_gone:
                raise  # else the place to meet went with it, and all is saved
        if self.stopped_by is not None and self.step < self.total:
            self._say(
                f"stopped by {self.stopped_by.name} after {self.step:,} of {self.total:,} steps; "
                "all is saved, and the same command goes on"
            )

    def _train(self) -> None:
        if self.config.training.accumulation == "auto":
            self._find_accumulation()
        self._say(self._summary())
        self._compile()
        if self.config.training.deterministic:
            self._tell_cost_of_determinism()
        mistake = (
            range_mistake(self.looking.some_data()) if self.train_set.noun == "image" else None
        )
        if mistake is not None:
            self._say(f"warning: {mistake}")
        left = initial_share(self.config.training.ema_decay, self.total)
        if left > _INITIAL:
            self._say(
                f"warning: after {counted(self.total, 'step')} {left:.0%} of the averaged weights, "
                "which samples are made with, will still be the initial ones: take a smaller "
                "--training.ema-decay, or more steps"
            )
        self.progress = TrainingProgress(self.total, self.step, self.console, self.train_set.noun)
        logging = self.config.logging
        board = None
        if logging.tensorboard and self.processes.first:
            board = _summary_writer()(self.out / "tensorboard", purge_step=self.step)
        began, seconds_before = time.monotonic(), self.seconds
        window_began, window_first = began, self.step
        self._saved_at = began
        if self.step == 0 and self.nonfinite.choice == "rollback":
            self._write_checkpoint()  # to have something to go back to
        try:
            while self.step < self.total and self.stopped_by is None:
                try:
                    self.train_step()
                except TrainingDiverged as diverged:
                    if self._recover(diverged) == "rollback":
                        window_began, window_first = time.monotonic(), self.step
                        continue
                now = time.monotonic()
                self.seconds = seconds_before + now - began
                if self.step % logging.metrics_every == 0 or self.step == self.total:
                    images = (self.step - window_first) * self.stream.batch_size
                    rate = images / (now - window_began)
                    if self.window.steps:  # else all were skipped, and the next row tells of it
                        row = self._metrics_row(rate, now - window_began)
                        self._log(row, board)
                        self.progress.update(self.step, row["loss"], rate)
                        self.window = LossWindow()
                    window_began, window_first, self.waited = now, self.step, 0.0
                held_out_loss = frechet = None
                if self._due(logging.held_out_every) and self.held_out is not None:
                    row = self.looking.held_out_row(self.step)
                    held_out_loss = row["held_out_loss"]
                    self._log(row, board)
                if self._due(logging.evaluate_every):
                    frechet = self._evaluate(board)
                best = self._is_best(held_out_loss, frechet)
                if self._due(logging.samples_every):
                    self.looking.write_samples(self.step)
                if (fraction := due(self.step, self.total)) is not None:
                    for warning in self.looking.look_early(self.step, self.total, fraction):
                        self.progress.say(f"warning: {warning}")
                if best or self._save_now or self._due(logging.checkpoint_every):
                    self._write_checkpoint(held_out_loss, frechet)
                self.saver.check()
            if self.step != self._saved_step:
                self._write_checkpoint()
        except BaseException:
            self.saver.finish()
            raise
        finally:
            self.progress.close()
            if board is not None:
                board.close()
        self.saver.wait()

    def _say(self, text: str) -> None:
        say(self.console, text)

    def _summary(self) -> str:
        """What is about to be trained, on what and where: the first lines of output."""
        examples = self.train_set
        held_out = f", {len(self.held_out):,} held out" if self.held_out is not None else ""
        parameters = sum(p.numel() for p in self.parameters.values())
        precision = str(self.autocast_dtype or self.dtype).removeprefix("torch.")
        start = f"going on from step {self.step:,}" if self.step else "starting"
        steps = counted(self.total, "step")
        on = f"{device_name(self.device)} in {precision}"
        if self.processes.size > 1:
            on = f"{self.processes.size} processes ({self.config.training.parallel}), {on}"
        parts = f" in {self.accumulation} parts" if self.accumulation > 1 else ""
        return (
            f"{examples.name} from {self.loaded.origin}: {len(examples):,} training "
            f"{examples.noun}s{held_out}, {examples.size}\n"
            f"{parameters:,} parameters, {self.config.prediction} prediction, "
            f"T = {self.denoiser.schedule.timesteps:,}, {on}\n"
            f"{start}: {steps} of {self.stream.batch_size} {examples.noun}s{parts}, in {self.out}"
        )

    def _stop(self, number: signal.Signals) -> None:
        self._signalled = int(number)
        if self.processes.size == 1:
            self.stopped_by = number

    @property
    def _launcher_is_gone(self) -> bool:
        return launched() and os.getppid() != self._parent

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.total)

    def train_step(self) -> None:
        """One optimizer step: everything it draws is addressed by the step.

        Raises:
            TrainingDiverged: if the loss or the gradient is not finite; nothing has changed.
        """
        training, seed, step = self.config.training, self.config.seed, self.step
        address = step + self.nonfinite.shift
        coming, self._coming = self._coming, None
        if coming is None or coming.address != address:
            coming = self._drawn(address)
        x_start, condition, noise = coming.x_start, coming.condition, coming.noise
        batch, own = self.stream.batch_size, self.stream.rows
        draw = self.timestep_sampler.draw(batch, generator(seed, "timestep", address))
        t, weight = torch.from_numpy(draw.t), torch.from_numpy(draw.weight).to(self.dtype)
        t_device, weight_device = t[own].to(self.device), weight[own].to(self.device)
        learning_rate = training.learning_rate * learning_rate_factor(training, step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

        self.network.train()
        may_skip = self.nonfinite.choice == "skip"
        buffers = [b.clone() for b in self.network.buffers()] if may_skip else []
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        size = len(x_start) // self.accumulation
        first_part = self.processes.rank * self.accumulation
        for part in range(self.accumulation):
            rows = slice(part * size, (part + 1) * size)
            with self.parallel.backward_context(last=part + 1 == self.accumulation):
                with torch_seeded(seed, "dropout", address, first_part + part), self._autocast():
                    losses = self._objective(
                        self.denoiser,
                        x_start[rows],
                        t_device[rows],
                        noise[rows],
                        rows_of(condition, rows),
                    )
                # The mean over the processes, which share the batch evenly, is the batch's.
                weighted = (losses * weight_device[rows]).sum() / len(x_start)
                self.scaler.scale(weighted).backward()  # type: ignore[no-untyped-call]
            parts.append(losses.detach())
        self.scaler.unscale_(self.optimizer)
        clipped = self.parallel.clip(self.parameters.values(), training.gradient_clip or math.inf)
        if self.device.type == "cuda" and step + 1 < self.total:
            self._coming = self._drawn(address + 1)  # while it computes what the next line awaits
        losses, norm = self._agreed(torch.cat(parts).to(self.dtype), clipped)
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
        if is_fault(losses, norm, scale):
            self.scaler.update()
            diverged = self._diverged(
                losses,
                t,
                norm,
                learning_rate,
                scale,
                lambda plain: self._objective(plain, x_start, t_device, noise, condition),
            )
            for buffer, before in zip(self.network.buffers(), buffers, strict=False):
                buffer.copy_(before)
            raise diverged
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.network, step)

        self.step += 1
        self.nonfinite.taken()
        skipped = not math.isfinite(norm)  # by the scaler, after an overflow in float16
        timesteps = self.denoiser.schedule.timesteps
        self.window.add(losses, t, timesteps, 0.0 if skipped else norm, weight)
        self.timestep_sampler.observe(draw.t, losses.double().numpy())

    def _drawn(self, address: int) -> _Drawn:
        """What a step takes whose address alone says what it is."""
        seed, asked = self.config.seed, time.monotonic()
        x_start, labels, told = self.stream.batch(address)
        self.waited += time.monotonic() - asked
        batch, own = self.stream.batch_size, self.stream.rows
        # Of the whole batch, as the noise below, so that processes may share it in any way.
        if self.config.told is None:
            labels = None
        elif labels is not None and self.config.label_dropout:
            left_out = generator(seed, "label dropout", address).random(batch)[own]
            dropped = torch.from_numpy(left_out < self.config.label_dropout)
            labels = without(labels, dropped.to(self.device))
        # Of the whole batch, so that it does not depend on how many processes share it.
        noise = normal((batch, *x_start.shape[1:]), seed, "noise", address, device=self.device)[own]
        return _Drawn(
            address, x_start.to(self.dtype), condition_of(labels, told), noise.to(self.dtype)
        )

    def _agreed(self, losses: Tensor, norm: Tensor) -> tuple[Tensor, float]:
        """The losses of the whole batch and the gradient's norm, on the CPU: one wait for both.

        With them the processes agree on whether this step is their last, and whether to save after
        it: one of them may have been sent a signal, and only the first one's clock counts.
        """
        minutes = self.config.logging.checkpoint_minutes
        save = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        told = losses.new_tensor([self._signalled, save])
        both = torch.cat([losses, told, norm.to(losses)[None]])
        if self.processes.size == 1:
            self._save_now = save
            own = both.cpu()
            return own[:-3], float(own[-1])
        if self._launcher_is_gone:
            self._signalled = self._signalled or int(signal.SIGTERM)
            both[-3] = self._signalled
        said = self.processes.gather_equal(both[None]).cpu()
        if number := int(said[:, -3].max()):
            self.stopped_by = signal.Signals(number)
        self._save_now = bool(said[0, -2])
        return said[:, :-3].flatten(), float(said[0, -1])

    def _compile(self) -> None:
        """Compile the network where asked to or where it pays; a first pass shows that it works."""
        choice = self.config.training.compile
        if choice == "off" or (choice == "auto" and not self._compiling_pays):
            return
        began, plain = time.monotonic(), self.denoiser
        self.denoiser = self._denoiser_of(compiled(self.parallel.module), plain)
        self.network.train()
        try:
            self._try_pass(self.stream.batch_size // (self.processes.size * self.accumulation))
        except Exception as error:
            if choice == "on" or self.processes.size > 1 or is_out_of_memory(error):
                raise
            self.denoiser = plain
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            self._say(f"warning: not compiled, which would be faster ({reason})")
        else:
            self._say(f"compiled in {time.monotonic() - began:.0f} s")

    @property
    def _compiling_pays(self) -> bool:
        enough = self.total - self.step >= _WORTH_COMPILING
        return self.device.type == "cuda" and enough and not self.parallel.sharded

    def _find_accumulation(self) -> None:
        """Take the largest part of a batch at once that the device has memory for."""
        share = self.stream.batch_size // self.processes.size

        def agree(parts: int) -> int:
            return int(self.processes.gather_equal(torch.tensor([parts])).max())

        if self.device.type == "cpu":
            count = self.processes.local_size
            self.accumulation = find_parts_on_cpu(self._try_pass, share, agree, count)
        else:
            self.accumulation = find_parts(self._try_pass, share, self.device, agree)

    def _try_pass(self, rows: int) -> None:
        """Take up the time and memory of a step with so many examples at once; nothing changes."""
        x = torch.zeros((rows, *self.train_set.shape), dtype=self.dtype, device=self.device)
        t = torch.zeros(rows, dtype=torch.int64, device=self.device)
        told = None
        if self.config.told == "classes":
            told = torch.zeros_like(t)
        elif self.config.told == "vector":
            told = torch.zeros((rows, self.train_set.vector or 0), device=self.device)
        try:
            # Adam's moments, which the first step will make.
            moments = [torch.ones_like(p) for p in self.parameters.values() for _ in range(2)]
            # Networks in parts keep what is not reduced; the others need not wait for each other.
            reduced = self.parallel.sharded
            with self.parallel.backward_context(last=reduced), self._autocast():
                losses = self._objective(self.denoiser, x, t, torch.ones_like(x), told)
                losses.sum().backward()  # type: ignore[no-untyped-call]
            del moments
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def _tell_cost_of_determinism(self) -> None:
        if self.device.type == "cpu":
            self._say("deterministic: a CPU repeats bit for bit anyway, so that it costs nothing")
            return
        rows = self.stream.batch_size // (self.processes.size * self.accumulation)
        more = cost(lambda: self._try_pass(rows), self.device)
        self._say(f"deterministic: a step takes {max(more, 0):.0%} longer for it on this device")

    @contextmanager
    def _telling_of_memory(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, InkdropError) or not is_out_of_memory(error):
                raise
            rows = self.stream.batch_size // (self.processes.size * self.accumulation)
            raise out_of_memory(error, self.device, rows, self.accumulation) from error

    def _recover(self, diverged: TrainingDiverged) -> str:
        """Skip the step that could not be taken, or go back, as `on_nonfinite` says.

        Returns:
            "skip" or "rollback".

        Raises:
            TrainingDiverged: where it says stop, or neither has helped.
        """
        if self.processes.first:
            self.saver.wait()

        def last_whole() -> tuple[Path | None, int]:
            path = newest_whole(self.out / "checkpoints", self.progress.say)
            return path, 0 if path is None else read_manifest(path)["step"]

        last, saved_step = self.processes.on_first(last_whole)
        decision = self.nonfinite.decide(self.step, str(diverged), last, saved_step)
        if decision.action == "skip":
            self.step += 1
            self.window.skipped += 1
        else:
            assert last is not None
            policy = self.nonfinite.state()
            self._restore(last)
            self.nonfinite.restore(policy)
            self.processes.on_first(lambda: rewind_metrics(self.out / "metrics.jsonl", self.step))
        self.progress.say(f"warning: {decision.message}")
        return decision.action

    def _diverged(
        self,
        losses: Tensor,
        t: Tensor,
        norm: float,
        learning_rate: float,
        scale: float | None,
        again: Callable[[Denoiser], object],
    ) -> TrainingDiverged:
        """What is not finite in this step, and in which layer it began.

        Args:
            again: computes this process's losses once more, with a denoiser.
        """
        if losses.isfinite().all():
            layer: str | None = "{} (norm {:.3g})".format(*largest_gradient(self.parameters))
        elif self.config.training.parallel == "ddp":
            plain = self._denoiser_of(self.network, self.denoiser)
            found = where_it_began(self.network, lambda: again(plain))
            layer = next(filter(None, self.processes.gather_objects(found)), None)
        else:
            layer = None
        timesteps = self.denoiser.schedule.timesteps
        return TrainingDiverged(
            describe_nonfinite(self.step, losses, t, timesteps, norm, learning_rate, scale, layer)
        )

    def _metrics_row(self, images_per_second: float, seconds: float) -> dict[str, Any]:
        window = self.window
        skipped = {"skipped_steps": window.skipped} if window.skipped else {}
        return {
            "step": self.step,
            "loss": window.loss / window.steps,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": window.gradient_norm / window.steps,
            "images_per_second": round(images_per_second, 2),
            "data_wait": round(self.waited / seconds, 5),
            "seconds": round(self.seconds, 3),
            "loss_by_timestep": window.by_timestep(),
            **skipped,
        }

    def _evaluate(self, board: Any) -> float | None:
        """Measure some samples, and write down what was found."""
        row = self.looking.evaluation_row(self.step)
        self._log(row, board)
        distance: float | None = row["frechet_distance"]
        found = "none: samples are not finite" if distance is None else f"{distance:.4g}"
        self.progress.say(
            f"step {self.step:,}: Fréchet distance {found} "
            f"({row['evaluation_samples']:,} samples, {row['extractor']})"
        )
        return distance

    def _is_best(self, held_out_loss: float | None, frechet: float | None) -> bool:
        """Whether this step is the best so far, by what the best checkpoint is chosen by."""
        lower_loss = _is_lower(held_out_loss, self.best_held_out)
        if lower_loss:
            self.best_held_out = held_out_loss
        if self.looking.frechet is None:
            return lower_loss
        nearer = _is_lower(frechet, self.best_frechet)
        if nearer:
            self.best_frechet = frechet
        return nearer

    def _log(self, row: dict[str, Any], board: Any) -> None:
        if self.processes.first:
            append_metrics(self.out / "metrics.jsonl", row)
        if board is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    board.add_scalar(name, value, row["step"])

    def _write_checkpoint(
        self, held_out_loss: float | None = None, frechet: float | None = None
    ) -> None:
        self._saved_step, self._saved_at = self.step, time.monotonic()
        if self.processes.first:
            sync_metrics(self.out / "metrics.jsonl")
        elif not self.parallel.sharded:
            return
        self.saver.save(
            Checkpoint(
                self.step,
                self.state.tensors(),
                {
                    "shape": list(self.train_set.shape),
                    "data": self.train_set.fingerprint,
                    "seconds": self.seconds,
                    "window": asdict(self.window),
                    "scaler": self.scaler.state_dict(),
                    "best_held_out_loss": self.best_held_out,
                    "nonfinite": self.nonfinite.state(),
                    **self._evaluation_state(frechet),
                },
                held_out_loss=held_out_loss,
                exempt=self.state.buffers,
            )
        )

    def _evaluation_state(self, frechet: float | None) -> dict[str, Any]:
        """What a checkpoint of a training that is evaluated keeps beside the rest."""
        by = self.looking.frechet
        if by is None:
            return {}
        return {
            "best_by": "frechet_distance",
            "frechet_distance": frechet,
            "extractor": by.fingerprint,
            "best_frechet_distance": self.best_frechet,
        }

    def _read(self, path: Path, parts: tuple[str, ...]) -> Checkpoint:
        """A checkpoint, which the first process alone needs to see, on every process."""
        read: list[Checkpoint] = []

        def head() -> Checkpoint:
            read.append(read_checkpoint(path, parts))
            return replace(read[0], tensors={})

        checkpoint = self.processes.on_first(head)
        tensors = {
            part: self.processes.tensors_of_first(read[0].tensors[part] if read else None)
            for part in parts
        }
        return replace(checkpoint, tensors=tensors)

    def _restore(self, path: Path) -> None:
        in_shards = self.parallel.sharded and (path / "weights").is_dir()
        parts = self.state.parts
        checkpoint = self._read(path, parts[len(PARTS) :] if in_shards else parts)
        state = checkpoint.state
        if state["data"] != self.train_set.fingerprint:
            raise InkdropError(
                f"{self.out} was trained on other {self.train_set.noun}s than these "
                f"({self.train_set.name}): give the same --data, or another --out"
            )
        if in_shards:
            self.state.restore_shards(path)
            self.state.restore_history(checkpoint.tensors)
        else:
            self.state.restore(checkpoint.tensors)
        self.scaler.load_state_dict(state["scaler"])
        self.step = self._saved_step = checkpoint.step
        self.seconds = state["seconds"]
        self.window = LossWindow(**state["window"])
        self.best_held_out = state["best_held_out_loss"]
        by = self.looking.frechet
        same = by is not None and state.get("extractor") == by.fingerprint
        self.best_frechet = state.get("best_frechet_distance") if same else None
        self.nonfinite.restore(state["nonfinite"])

    def _prepare_folder(self) -> None:
        self.folder.hold()
        write_config(self.out, self.config)
        environment = read_environment(self.out)
        session = {"first_step": self.step, **describe(self.device)}
        environment["sessions"].append({**session, "processes": self.processes.size})
        replace_synced(self.out / "environment.json", json.dumps(environment, indent=1).encode())
        rewind_metrics(self.out / "metrics.jsonl", self.step)
        if self.held_out is not None and self.held_out.noun == "image":
            write_example(self.out, self.held_out.at([0])[0])
        if self._vectors is not None:
            write_vectors(self.out, self._vectors)
        if self.loaded.check is not None and self.loaded.proposal is not None:
            write_data(self.out, self.loaded.check, self.loaded.proposal)


def _is_lower(value: float | None, before: float | None) -> bool:
    return value is not None and value < (math.inf if before is None else before)


def _total_steps(training: TrainingConfig, examples: int) -> int:
    if training.steps is not None:
        return training.steps
    if training.epochs is None:
        raise InkdropError("the length of training is not given: set training.steps or .epochs")
    return max(1, math.ceil(training.epochs * examples / training.batch_size))


def _set_condition(config: Config, examples: Examples, before: float | None) -> None:
    """Let `conditional` take from the data what the network is told, and check that it has it.

    Args:
        before: the label dropout of the run that is gone on with.
    """
    network = config.network
    if config.told is None and not config.conditional:
        if config.label_dropout:
            raise InkdropError(
                f"label_dropout is {config.label_dropout:g}, but the network is told no labels: "
                "set conditional too, or leave it out"
            )
        return
    if network is None:
        raise InkdropError(
            "conditional is for the networks of the configuration; a module of your own is told "
            "its condition by itself"
        )
    asked = "conditional is set"
    if config.told is not None:
        asked = f"network.{config.told} is {getattr(network, config.told)}"
    if examples.classes is None and examples.vector is None:
        raise InkdropError(
            f"{asked}, but the {examples.noun}s of {examples.name} have no labels; leave it out, "
            "or give data with classes"
        )
    if config.told is None:
        network.classes, network.vector = examples.classes, examples.vector
    if network.vector != examples.vector:
        raise InkdropError(
            f"{asked}, but the labels of {examples.name} are {examples.told}: set conditional "
            "instead"
        )
    if (network.classes or 0) < (examples.classes or 0):
        assert examples.classes is not None
        raise InkdropError(
            f"network.classes is {network.classes}, but the labels of {examples.name} go up to "
            f"{examples.classes - 1}: set network.classes to {examples.classes}"
        )
    if config.label_dropout is None:
        config.label_dropout = before


def _precision(name: str, device: torch.device) -> tuple[torch.dtype | None, torch.dtype]:
    """The dtype to autocast to, None for none; and that of the weights."""
    if name == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        name = "bfloat16" if has_bfloat16 else "float32"
    if name == "float64":
        return None, torch.float64
    low = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return low.get(name), torch.float32


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InkdropError(
            "logging.tensorboard needs TensorBoard: pip install 'inkdrop[tensorboard]'"
        ) from None
    return SummaryWriter
