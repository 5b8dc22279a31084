"""The training loop."""

from __future__ import annotations

import json
import math
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from ..build import augmentation_of, build_denoiser, build_objective, choose_device
from ..checkpoint import (
    PARTS,
    Checkpoint,
    newest_checkpoint,
    read_checkpoint,
    replace_synced,
    write_checkpoint,
)
from ..config import OWN_IMAGES, OWN_OBJECTIVE, Config, TrainingConfig
from ..console import say
from ..data.examples import Examples, to_x_start
from ..data.images import read_images
from ..data.loading import Loaded, load_own, load_source
from ..data.pixels import to_uint8
from ..data.stream import Stream, held_out_split
from ..diffusion.denoiser import Denoiser
from ..diffusion.objectives import Objective
from ..diffusion.samplers import sample
from ..diffusion.timestep_sampling import timestep_sampler
from ..environment import describe, device_name
from ..errors import InkdropError
from ..metrics import append_metrics, bin_label, rewind_metrics, timestep_bin
from ..networks.embedding import Condition, rows_of
from ..randomness import generator, normal, torch_seeded
from ..run import (
    Run,
    cycled_classes,
    read_environment,
    write_config,
    write_data,
    write_example,
)
from .ema import EMA
from .folder import checkpoint_to_resume
from .learning_rate import learning_rate_factor
from .losses import LossWindow
from .progress import TrainingProgress
from .signals import handling_stop_signals

_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
_TIMESTEPS_PART = "timesteps"  # of a checkpoint, for a timestep sampler that remembers losses
_PREVIEW_IMAGES, _PREVIEW_POINTS = 64, 2000


class TrainingDiverged(InkdropError):
    """The loss or the gradient is no longer a finite number; the step was not taken."""


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

    Returns:
        The run. SIGINT and SIGTERM save and return early: then `run.step` is below the last step,
        and the same call goes on.

    Raises:
        InkdropError: for a mistake in any of it, or a folder that holds something else, before
            anything is written.
        TrainingDiverged: when the loss or a gradient is not finite; the last checkpoint stands.
    """
    console = Console() if progress else None
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
        self.stopped_by: signal.Signals | None = None
        self.resumed_from = checkpoint_to_resume(self.out, config, resume)

        self.device = choose_device(config.training.device)
        if source is not None:
            loaded = load_own(source, config.data, self.console)
        told = config.conditional or bool(getattr(config.network, "classes", None))
        self.loaded = loaded or load_source(config.data, self.console, conditional=told)
        train_set, test_set = self.loaded.source.train, self.loaded.source.test
        images, self.held_out = held_out_split(train_set, test_set, config.data.held_out)
        if self.held_out is not None and not self.held_out.in_memory:
            self.held_out = read_images(self.held_out)  # once: each measurement asks for all of it
        self.train_set = images
        _set_classes(config, images)
        self.total = _total_steps(config.training, len(images))

        with torch_seeded(config.seed, "initial weights"):
            self.denoiser = build_denoiser(config, images.shape, network)
        self._needs_classes = getattr(config.network, "classes", None)
        self.network = self.denoiser.network.to(self.device)
        self.ema = EMA(self.network, config.training.ema_decay)
        self.averaged = Denoiser(
            self.ema.network,
            self.denoiser.schedule,
            config.prediction,
            images.shape,
            self.denoiser.learned_variance,
        )
        self.timestep_sampler = timestep_sampler(
            config.timestep_sampler, self.denoiser.schedule.timesteps
        )
        self.parameters = dict(self.network.named_parameters())
        self.optimizer = _OPTIMIZERS[config.training.optimizer](
            self.parameters.values(),
            lr=config.training.learning_rate,
            betas=config.training.betas,
            weight_decay=config.training.weight_decay,
            fused=True,
        )
        self.autocast_dtype = _precision(config.training.precision, self.device)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.autocast_dtype == torch.float16
        )
        self.stream = Stream(
            images,
            config.training.batch_size,
            config.seed,
            augmentation_of(config.data),
            device=self.device,
            memory=config.data.memory,
        )
        self.waited = 0.0
        if config.logging.tensorboard:
            _summary_writer()  # missing, it is missed before anything is written
        self.step = self._saved_step = 0
        self.seconds = 0.0
        self.window = LossWindow()
        if self.resumed_from is not None:
            self._restore(self.resumed_from)

    def run(self) -> None:
        """Train to the last step, or until SIGINT or SIGTERM."""
        if self.step >= self.total:
            say(
                self.console,
                f"{self.out} is finished: {self.step:,} of {self.total:,} steps are done",
            )
            return
        self._prepare_folder()
        say(self.console, self._summary())
        progress = TrainingProgress(self.total, self.step, self.console, self.train_set.noun)
        logging = self.config.logging
        board = None
        if logging.tensorboard:
            board = _summary_writer()(self.out / "tensorboard", purge_step=self.step)
        began, seconds_before = time.monotonic(), self.seconds
        window_began, window_first = began, self.step
        try:
            with handling_stop_signals(self._stop):
                while self.step < self.total and self.stopped_by is None:
                    self.train_step()
                    now = time.monotonic()
                    self.seconds = seconds_before + now - began
                    if self.step % logging.metrics_every == 0 or self.step == self.total:
                        images = (self.step - window_first) * self.stream.batch_size
                        rate = images / (now - window_began)
                        row = self._metrics_row(rate, now - window_began)
                        self._log(row, board)
                        progress.update(self.step, row["loss"], rate)
                        self.window, window_began, window_first = LossWindow(), now, self.step
                        self.waited = 0.0
                    if self._due(logging.held_out_every) and self.held_out is not None:
                        self._log(self._held_out_row(self.held_out), board)
                    if self._due(logging.samples_every):
                        self._write_samples()
                    if self._due(logging.checkpoint_every):
                        self._write_checkpoint()
                if self.step != self._saved_step:
                    self._write_checkpoint()
        finally:
            progress.close()
            if board is not None:
                board.close()
        if self.stopped_by is not None and self.step < self.total:
            say(
                self.console,
                f"stopped by {self.stopped_by.name} after {self.step:,} of {self.total:,} steps; "
                "all is saved, and the same command goes on",
            )

    def _summary(self) -> str:
        """What is about to be trained, on what and where: the first lines of output."""
        examples = self.train_set
        held_out = f", {len(self.held_out):,} held out" if self.held_out is not None else ""
        parameters = sum(p.numel() for p in self.parameters.values())
        precision = str(self.autocast_dtype or torch.float32).removeprefix("torch.")
        start = f"going on from step {self.step:,}" if self.step else "starting"
        steps = f"{self.total:,} step{'s' if self.total > 1 else ''}"
        return (
            f"{examples.name} from {self.loaded.origin}: {len(examples):,} training "
            f"{examples.noun}s{held_out}, {examples.size}\n"
            f"{parameters:,} parameters, {self.config.prediction} prediction, "
            f"T = {self.denoiser.schedule.timesteps:,}, {device_name(self.device)} in {precision}\n"
            f"{start}: {steps} of {self.stream.batch_size} {examples.noun}s, in {self.out}"
        )

    def _stop(self, number: signal.Signals) -> None:
        self.stopped_by = number

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.total)

    def train_step(self) -> None:
        """One optimizer step: everything it draws is addressed by the step."""
        training, seed, step = self.config.training, self.config.seed, self.step
        asked = time.monotonic()
        x_start, labels, told = self.stream.batch(step)
        self.waited += time.monotonic() - asked
        classes = labels if self._needs_classes else None
        condition = classes if told is None else Condition(classes, told)
        timesteps = self.denoiser.schedule.timesteps
        draw = self.timestep_sampler.draw(len(x_start), generator(seed, "timestep", step))
        t, weight = torch.from_numpy(draw.t), torch.from_numpy(draw.weight).float()
        t_device, weight_device = t.to(self.device), weight.to(self.device)
        noise = normal(tuple(x_start.shape), seed, "noise", step, device=self.device)
        learning_rate = training.learning_rate * learning_rate_factor(training, step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        size = len(x_start) // training.accumulation
        for part in range(training.accumulation):
            rows = slice(part * size, (part + 1) * size)
            with torch_seeded(seed, "dropout", step, part), self._autocast():
                losses = self._objective(
                    self.denoiser,
                    x_start[rows],
                    t_device[rows],
                    noise[rows],
                    rows_of(condition, rows),
                )
            weighted = (losses * weight_device[rows]).sum() / len(x_start)
            self.scaler.scale(weighted).backward()  # type: ignore[no-untyped-call]
            parts.append(losses.detach())
        losses = torch.cat(parts).float().cpu()

        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(
            self.parameters.values(), training.gradient_clip or math.inf
        ).item()
        self._check_finite(losses, t, norm, learning_rate)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.network, step)

        self.step += 1
        skipped = not math.isfinite(norm)  # by the scaler, after an overflow in float16
        self.window.add(losses, t, timesteps, 0.0 if skipped else norm, weight)
        self.timestep_sampler.observe(draw.t, losses.double().numpy())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type,
            dtype=self.autocast_dtype,
            enabled=self.autocast_dtype is not None,
        )

    def _check_finite(self, losses: Tensor, t: Tensor, norm: float, learning_rate: float) -> None:
        bad = ~losses.isfinite()
        # With float16 an overflowing gradient is ordinary: the scaler skips that step itself.
        if not bad.any() and (math.isfinite(norm) or self.scaler.is_enabled()):
            return
        if bad.any():
            timesteps = self.denoiser.schedule.timesteps
            worst = int(t[bad][0])
            label = bin_label(timestep_bin(worst, timesteps), timesteps)
            what = f"the loss is {losses[bad][0].item()} at timestep {worst} (bin {label})"
        else:
            what = f"the gradient's norm is {norm}"
        checkpoint = newest_checkpoint(self.out / "checkpoints")
        stands = f"{checkpoint} is the last good checkpoint" if checkpoint else "no checkpoint yet"
        raise TrainingDiverged(
            f"training diverged in step {self.step}: {what}, with learning rate "
            f"{learning_rate:.3g}; the step was not taken and {stands}; try a lower "
            "--training.learning-rate or longer --training.warmup-steps in a new --out folder"
        )

    def _metrics_row(self, images_per_second: float, seconds: float) -> dict[str, Any]:
        window = self.window
        return {
            "step": self.step,
            "loss": window.loss / window.steps,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": window.gradient_norm / window.steps,
            "images_per_second": round(images_per_second, 2),
            "data_wait": round(self.waited / seconds, 5),
            "seconds": round(self.seconds, 3),
            "loss_by_timestep": window.by_timestep(),
        }

    @torch.no_grad()
    def _held_out_row(self, held_out: Examples) -> dict[str, Any]:
        """The averaged weights' loss on examples, timesteps and noise that are always the same."""
        count, timesteps = len(held_out), self.denoiser.schedule.timesteps
        x_start = to_x_start(held_out.values)
        noise = normal(tuple(x_start.shape), 0, "held-out noise")
        t = torch.arange(count) * timesteps // count
        condition = held_out.labels_at(range(count)) if self._needs_classes else None
        losses = []
        for i in range(0, count, self.stream.batch_size):
            rows = slice(i, i + self.stream.batch_size)
            with self._autocast():
                part = self._objective(
                    self.averaged,
                    x_start[rows].to(self.device),
                    t[rows].to(self.device),
                    noise[rows].to(self.device),
                    None if condition is None else condition[rows].to(self.device),
                )
            losses.append(part.float().cpu())
        window = LossWindow()
        window.add(torch.cat(losses), t, timesteps)
        return {
            "step": self.step,
            "held_out_loss": window.loss,
            "held_out_loss_by_timestep": window.by_timestep(),
        }

    def _log(self, row: dict[str, Any], board: Any) -> None:
        append_metrics(self.out / "metrics.jsonl", row)
        if board is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    board.add_scalar(name, value, row["step"])

    def _write_samples(self) -> None:
        """The same samples of seed 0 as training goes: a grid of images, or points in the plane."""
        from ..report.pictures import grid, save  # Matplotlib takes as long as a step or two
        from ..report.points import frame_of, scatter

        shape = self.train_set.shape
        if len(shape) != 3 and shape != (2,):
            return  # there is no picture of those
        count = _PREVIEW_IMAGES if len(shape) == 3 else _PREVIEW_POINTS
        with self._autocast():
            x = sample(
                self.averaged,
                count,
                "ddim",
                min(50, self.denoiser.schedule.timesteps),
                condition=cycled_classes(self.config, 0, count),
                batch_size=self.stream.batch_size,
            ).cpu()
        picture = self.out / "samples" / "training" / f"step-{self.step:08d}.png"
        if len(shape) == 3:
            save(grid(to_uint8(x)), picture)
        else:
            save(scatter(x, frame_of(self.train_set.values)), picture)

    def _write_checkpoint(self) -> None:
        names = list(self.parameters)
        state = self.optimizer.state_dict()["state"]
        optimizer = {
            f"{kind}/{names[i]}": value
            for i, kinds in state.items()
            for kind, value in kinds.items()
        }
        tensors = {
            "weights": self.network.state_dict(),
            "ema": self.ema.network.state_dict(),
            "optimizer": optimizer,
        }
        if history := self.timestep_sampler.state():
            tensors[_TIMESTEPS_PART] = {k: torch.from_numpy(v) for k, v in history.items()}
        write_checkpoint(
            self.out / "checkpoints",
            Checkpoint(
                self.step,
                tensors,
                {
                    "shape": list(self.train_set.shape),
                    "data": self.train_set.fingerprint,
                    "seconds": self.seconds,
                    "window": asdict(self.window),
                    "scaler": self.scaler.state_dict(),
                },
            ),
            self.config.logging.keep_checkpoints,
        )
        self._saved_step = self.step

    def _restore(self, path: Path) -> None:
        remembers = bool(self.timestep_sampler.state())
        checkpoint = read_checkpoint(path, (*PARTS, _TIMESTEPS_PART) if remembers else PARTS)
        state = checkpoint.state
        if state["data"] != self.train_set.fingerprint:
            raise InkdropError(
                f"{self.out} was trained on other {self.train_set.noun}s than these "
                f"({self.train_set.name}): give the same --data, or another --out"
            )
        self.network.load_state_dict(checkpoint.tensors["weights"])
        self.ema.network.load_state_dict(checkpoint.tensors["ema"])
        optimizer: dict[int, dict[str, Tensor]] = {}
        index = {name: i for i, name in enumerate(self.parameters)}
        for key, value in checkpoint.tensors["optimizer"].items():
            kind, name = key.split("/", 1)
            optimizer.setdefault(index[name], {})[kind] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": optimizer, "param_groups": groups})
        if remembers:
            history = checkpoint.tensors[_TIMESTEPS_PART]
            self.timestep_sampler.restore({k: v.numpy() for k, v in history.items()})
        self.scaler.load_state_dict(state["scaler"])
        self.step = self._saved_step = checkpoint.step
        self.seconds = state["seconds"]
        self.window = LossWindow(**state["window"])

    def _prepare_folder(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        write_config(self.out, self.config)
        environment = read_environment(self.out)
        environment["sessions"].append({"first_step": self.step, **describe(self.device)})
        replace_synced(self.out / "environment.json", json.dumps(environment, indent=1).encode())
        rewind_metrics(self.out / "metrics.jsonl", self.step)
        if self.held_out is not None and self.held_out.noun == "image":
            write_example(self.out, self.held_out.at([0])[0])
        if self.loaded.check is not None and self.loaded.proposal is not None:
            write_data(self.out, self.loaded.check, self.loaded.proposal)


def _total_steps(training: TrainingConfig, examples: int) -> int:
    if training.steps is not None:
        return training.steps
    if training.epochs is None:
        raise InkdropError("the length of training is not given: set training.steps or .epochs")
    return max(1, math.ceil(training.epochs * examples / training.batch_size))


def _set_classes(config: Config, examples: Examples) -> None:
    """Let `conditional` take the number of classes from the data, and check that it has them."""
    classes = getattr(config.network, "classes", None)
    if classes is None and not config.conditional:
        return
    if examples.classes is None:
        asked = "conditional is set" if classes is None else f"network.classes is {classes}"
        raise InkdropError(
            f"{asked}, but the {examples.noun}s of {examples.name} have no labels; leave it out, "
            "or give data with classes"
        )
    if classes is None:
        if config.network is None:
            raise InkdropError(
                "conditional is for the networks of the configuration; a module of your own is "
                "told its condition by itself"
            )
        config.network.classes = examples.classes
        return
    if examples.classes > classes:
        raise InkdropError(
            f"network.classes is {classes}, but the labels of {examples.name} go up to "
            f"{examples.classes - 1}: set network.classes to {examples.classes}"
        )


def _precision(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to; None for plain float32."""
    if name == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InkdropError(
            "logging.tensorboard needs TensorBoard: pip install 'inkdrop[tensorboard]'"
        ) from None
    return SummaryWriter
