"""The configuration of a run: validated, to and from JSON, and the command line's flags."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from .settings import Settings, one_of

Fraction = Annotated[float, Field(ge=0, lt=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]

LABEL_DROPOUT = 0.1  # where none is given: Ho & Salimans 2022 found 0.1 and 0.2 alike

SOURCES = (
    "digits",
    "mnist",
    "fashion-mnist",
    "cifar10",
    "files",
    "points-gmm",
    "points-swiss-roll",
    "points-checkerboard",
    "points-two-moons",
    "points-rings",
    "points-dial",
)
OWN_IMAGES = "own"
FITS = ("crop", "random-crop", "pad", "stretch")
PADDINGS = ("edge", "reflect", "zero")
MEMORY = ("auto", "resident", "mapped")
BAD_IMAGES = ("stop", "skip")
OBJECTIVES = (
    "simple",
    "weighted-noise",
    "variational-bound",
    "hybrid",
    "min-snr",
    "p2",
)
OWN_OBJECTIVE = "own"
PRECISIONS = ("auto", "float32", "bfloat16", "float16", "float64")
PARALLEL = ("ddp", "fsdp")
OPTIMIZERS = ("adam", "adamw", "muon")
COMPILE = ("auto", "on", "off")
ON_NONFINITE = ("stop", "skip", "rollback")
VARIANCES = ("posterior", "beta", "learned")
TIMESTEP_SAMPLERS = ("uniform", "stratified", "loss-aware")
LONGEST_WAVES = ("included", "excluded")
DOWNSAMPLE_PADDINGS = ("both", "after")
SCHEDULE_FIELDS = {
    "linear": {"timesteps", "beta_start", "beta_end"},
    "cosine": {"timesteps", "s", "max_beta"},
    "sigmoid": {"timesteps", "start", "end", "tau", "max_beta"},
    "betas": {"values"},
    "alphas-cumprod": {"values"},
}


def _listed(size: Any) -> Any:
    return (size,) if isinstance(size, int) else size


def _one_or_two(size: tuple[int, ...]) -> tuple[int, ...]:
    if len(size) > 2:
        raise ValueError(f"one side, or height and width, got {len(size)} numbers")
    return size


def _classes_or_vector(network: NetworkConfig) -> NetworkConfig:
    if network.classes is not None and network.vector is not None:
        raise ValueError(
            f"a network is told classes or a vector, not both (classes {network.classes}, vector "
            f"{network.vector})"
        )
    return network


class DataConfig(Settings):
    """Which images or points, what is made of them, and how they are varied."""

    source: Annotated[str, one_of("data source", (*SOURCES, OWN_IMAGES))] = "digits"
    """Where data comes from where no path is given: digits, mnist, fashion-mnist, cifar10,
    points-gmm, points-swiss-roll, points-checkerboard, points-two-moons, points-rings or
    points-dial; files, for none but the path's; own, for what is passed in Python."""
    path: tuple[str, ...] = ()
    """Files or a folder of any kind, hf:NAME for a set of the Hugging Face hub, or the name of
    another source; empty for the source's own place."""
    size: Annotated[
        tuple[PositiveInt, ...], BeforeValidator(_listed), AfterValidator(_one_or_two)
    ] = ()
    """The side, or height and width, that images are brought to; proposed by the check where not
    given."""
    channels: Literal[1, 3, 4] | None = None
    """1 for grey, 3 for colour, 4 to keep transparency; proposed by the check where not given."""
    fit: Annotated[str, one_of("fit", FITS)] = "crop"
    """How another shape is brought to size: crop (the middle), random-crop (a place drawn once for
    each image), pad or stretch."""
    background: str = "auto"
    """Beneath transparency and around padding: white, black, #rrggbb or another colour; auto is
    white, or black for images too light to show on it."""
    bad_images: Annotated[str, one_of("policy for bad images", BAD_IMAGES)] = "stop"
    """What happens when some cannot be used: stop, or skip them and write down which."""
    streaming: bool = False
    """Decode images as they are needed, and keep none: for sets larger than the disk."""
    window: Annotated[int, Field(ge=2)] = 2048
    """streaming: how many encoded images are at hand, to be shuffled."""
    memory: Annotated[str, one_of("memory mode", MEMORY)] = "auto"
    """resident on the device, mapped from a file, or auto: resident where it fits."""
    workers: PositiveInt | None = None
    """Processes that check and decode; one a core where not given."""
    horizontal_flip: bool = False
    """Mirror half of the images."""
    shift: NonNegativeInt = 0
    """Move images by up to this many pixels each way: a random crop of the padded image."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Turn images by up to this many degrees each way."""
    padding: Annotated[str, one_of("padding", PADDINGS)] = "edge"
    """What shifts and rotations bring in: edge (repeated), reflect or zero (black)."""
    non_leaking: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of each of EDM's non-leaking augmentations, which the network is told of; they
    use 0.12 for CIFAR-10."""
    held_out: PositiveInt = 256
    """Examples for the held-out loss: from the test set, or set aside where there is none."""


class ScheduleConfig(Settings):
    """The noise schedule. Fields of another kind of schedule are refused."""

    kind: Annotated[str, one_of("schedule", tuple(SCHEDULE_FIELDS))] = "linear"
    """linear, cosine, sigmoid, betas or alphas-cumprod (the last two take values)."""
    timesteps: PositiveInt = 1000
    """T."""
    beta_start: OpenFraction | None = None
    """linear: the first beta; 1e-4 scaled by 1000/T where not given."""
    beta_end: OpenFraction | None = None
    """linear: the last beta; 0.02 scaled by 1000/T where not given."""
    s: NonNegativeFloat = 0.008
    """cosine: the offset that keeps the first betas from vanishing."""
    start: float = -3.0
    """sigmoid: where on the sigmoid to start."""
    end: float = 3.0
    """sigmoid: where on it to end."""
    tau: PositiveFloat = 1.0
    """sigmoid: its temperature."""
    max_beta: OpenFraction = 0.999
    """cosine, sigmoid: the cap on beta."""
    values: tuple[float, ...] = ()
    """betas, alphas-cumprod: one value for each timestep."""

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> Self:
        for name, field in type(self).model_fields.items():
            foreign = name != "kind" and name not in SCHEDULE_FIELDS[self.kind]
            if foreign and getattr(self, name) != field.default:
                raise ValueError(
                    f"{name} does not belong to the {self.kind} schedule, which takes "
                    + ", ".join(sorted(SCHEDULE_FIELDS[self.kind]))
                )
        if "values" in SCHEDULE_FIELDS[self.kind] and not self.values:
            raise ValueError(f"the schedule {self.kind} needs values, one for each timestep")
        return self


class UNetConfig(Settings):
    """The U-Net of Ho et al. 2020, App. B, and its usual variations."""

    kind: Literal["unet"] = "unet"
    """The kind of network."""
    channels: PositiveInt = 64
    """Channels at full resolution."""
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 2)
    """Channels of each level, as multiples of channels; each level halves the resolution."""
    blocks: PositiveInt = 2
    """Residual blocks at each level."""
    attention_resolutions: tuple[PositiveInt, ...] = ()
    """Levels with self-attention, by the longer side of their feature map in pixels."""
    attention_in_bottleneck: bool = True
    """Self-attention between the two blocks of the bottleneck."""
    head_channels: PositiveInt | None = None
    """Channels of an attention head; one head of all channels where not given."""
    dropout: Fraction = 0.0
    """Dropout inside residual blocks."""
    time_injection: Annotated[str, one_of("time injection", ("additive", "scale-shift"))] = (
        "additive"
    )
    """How a block is told the timestep: additive or scale-shift."""
    patch_size: PositiveInt = 1
    """Side of the square of pixels that the first layer folds into channels."""
    norm_groups: PositiveInt | None = None
    """Groups of each normalisation; 32, or fewer for about four channels each, where not given."""
    norm_epsilon: PositiveFloat = 1e-5
    """What a normalisation adds to the variance."""
    longest_wave: Annotated[str, one_of("longest wave", LONGEST_WAVES)] = "included"
    """Whether the sinusoids of the timestep include the wavelength 20,000π: included, as Ho's, or
    excluded, as Vaswani's."""
    downsample_padding: Annotated[str, one_of("padding", DOWNSAMPLE_PADDINGS)] = "both"
    """Where a strided convolution pads: both sides, or after (bottom and right, as Ho's)."""
    classes: PositiveInt | None = None
    """Number of classes to be told as the condition; none for an unconditional network."""
    vector: PositiveInt | None = None
    """Numbers of the vector to be told as the condition, in place of a class."""

    _one_condition = model_validator(mode="after")(_classes_or_vector)


class MLPConfig(Settings):
    """A residual multilayer perceptron for points (D,)."""

    kind: Literal["mlp"] = "mlp"
    """The kind of network."""
    width: PositiveInt = 128
    """Units of each layer."""
    blocks: PositiveInt = 4
    """Residual blocks."""
    waves: NonNegativeInt = 0
    """Plane waves whose sine and cosine are added to the coordinates, for fine detail."""
    dropout: Fraction = 0.0
    """Dropout inside residual blocks."""
    classes: PositiveInt | None = None
    """Number of classes to be told as the condition; none for an unconditional network."""
    vector: PositiveInt | None = None
    """Numbers of the vector to be told as the condition, in place of a class."""

    _one_condition = model_validator(mode="after")(_classes_or_vector)


NetworkConfig = UNetConfig | MLPConfig


class WeightingConfig(Settings):
    """The constants of the objectives that have any."""

    min_snr_gamma: PositiveFloat = 5.0
    """min-snr: the SNR from which on it no longer counts."""
    p2_gamma: NonNegativeFloat = 1.0
    """p2: how strongly little noise is weighed down."""
    p2_k: PositiveFloat = 1.0
    """p2: what is added to the SNR."""
    bound_weight: PositiveFloat = 0.001
    """hybrid: what the bound counts beside the simple loss."""


class TrainingConfig(Settings):
    """The optimisation."""

    steps: PositiveInt | None = None
    """Optimizer steps; give these or epochs."""
    epochs: PositiveFloat | None = None
    """Passes over the training images; give these or steps."""
    batch_size: PositiveInt = 128
    """Images of one optimizer step."""
    accumulation: PositiveInt | Literal["auto"] = 1
    """Equal parts that each process computes its share of a batch in, to fit in memory; auto finds
    the fewest that do."""
    optimizer: Annotated[str, one_of("optimizer", OPTIMIZERS)] = "adamw"
    """adam, adamw, or muon: orthogonal updates for the weights of layers, adamw for the rest."""
    learning_rate: PositiveFloat = 2e-4
    """The highest learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Adam's decay of the gradient's first and second moments; muon's of what adamw is for."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from zero."""
    decay: Annotated[str, one_of("decay", ("constant", "linear", "cosine"))] = "constant"
    """How the learning rate goes to final_learning_rate: constant, linear or cosine."""
    final_learning_rate: NonNegativeFloat = 0.0
    """Where a linear or cosine decay ends."""
    gradient_clip: PositiveFloat | None = 1.0
    """The largest gradient norm; None for no clipping."""
    ema_decay: Fraction = 0.999
    """Decay of the averaged weights per step; smaller during the first steps."""
    precision: Annotated[str, one_of("precision", PRECISIONS)] = "auto"
    """auto, float32, bfloat16, float16 or float64; auto is bfloat16 on a GPU that has it."""
    compile: Annotated[str, one_of("answer to whether to compile", COMPILE)] = "auto"
    """Train through torch.compile, which takes a minute or two first: auto (on a GPU, where 10,000
    steps or more are left), on or off."""
    parallel: Annotated[str, one_of("way to share a network", PARALLEL)] = "ddp"
    """How processes share the network: ddp keeps it whole in each, fsdp a part in each, for
    networks beyond one device's memory."""
    deterministic: bool = False
    """Only operations that repeat bit for bit: on a GPU slower, on the CPU they are so anyway."""
    on_nonfinite: Annotated[str, one_of("answer to a non-finite step", ON_NONFINITE)] = "stop"
    """After a loss or gradient that is not finite: stop, skip that step, or rollback to the last
    checkpoint and take other data from there."""
    device: str = "auto"
    """auto (cuda, then mps, then cpu), or a device torch knows."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"give steps or epochs, not both (got {self.steps} and {self.epochs})")
        if self.accumulation != "auto" and self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split into {self.accumulation} equal "
                "parts (accumulation)"
            )
        return self


class LoggingConfig(Settings):
    """What is written down, and when. None of it changes what is learnt."""

    metrics_every: PositiveInt = 50
    """Steps between lines of metrics.jsonl."""
    held_out_every: PositiveInt = 500
    """Steps between held-out losses."""
    checkpoint_every: PositiveInt = 1000
    """Steps between checkpoints."""
    checkpoint_minutes: PositiveFloat | None = 10
    """Minutes between checkpoints, where they come before the steps; None for steps alone."""
    keep_checkpoints: PositiveInt = 3
    """How many checkpoints are kept, beside the one with the best held-out loss."""
    samples_every: NonNegativeInt = 1000
    """Steps between grids of samples in samples/training; 0 for none."""
    evaluate_every: NonNegativeInt = 0
    """Steps between evaluations of samples of the averaged weights, whose least Fréchet distance
    then makes a checkpoint the best one; 0 for none."""
    evaluate_samples: Annotated[int, Field(ge=2)] = 1000
    """Samples of each of them."""
    evaluate_steps: PositiveInt = 20
    """Network evaluations of each sample, by DDIM."""
    tensorboard: bool = False
    """Write TensorBoard's event files too (the extra tensorboard)."""


class Config(Settings):
    """All that a run depends on."""

    name: str = "digits"
    """The preset it came from."""
    seed: int = 0
    """Names every draw of the run."""
    prediction: Annotated[str, one_of("prediction", ("noise", "x_start", "velocity", "score"))] = (
        "noise"
    )
    """What the network predicts: noise, x_start, velocity or score."""
    objective: Annotated[str, one_of("objective", (*OBJECTIVES, OWN_OBJECTIVE))] = "simple"
    """The training objective: simple, weighted-noise, variational-bound, hybrid, min-snr or p2; or
    own, for one passed in Python."""
    variance: Annotated[str, one_of("variance", VARIANCES)] = "posterior"
    """Of the reverse steps, where the objective knows one: posterior, beta or learned."""
    timestep_sampler: Annotated[str, one_of("timestep sampler", TIMESTEP_SAMPLERS)] = "uniform"
    """Which timesteps a batch is trained at: uniform, stratified or loss-aware."""
    conditional: bool = False
    """Tell the network the classes of the data, as many as there are, or its vectors."""
    label_dropout: Fraction | None = None
    """How often a label is left out in training, so that samples can be guided; 0.1 where not
    given."""
    weighting: WeightingConfig = WeightingConfig()
    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    network: UNetConfig | MLPConfig | None = Field(UNetConfig(), discriminator="kind")
    """The network; None when a module of one's own is passed in Python."""
    training: TrainingConfig = TrainingConfig()
    logging: LoggingConfig = LoggingConfig()

    @property
    def told(self) -> str | None:
        """What the network is told of an example: "classes", "vector", or None for nothing."""
        if self.network is None:
            return None
        return "vector" if self.network.vector else "classes" if self.network.classes else None


def differences(before: Config, after: Config) -> list[str]:
    """The fields in which two configurations would train differently, as "path: old → new".

    What does not change the result, or by rounding only, is left out: the name, `logging`, what
    computes a batch and in how many parts, what is done about a step that fails, and where the data
    lies and is kept (a run knows its data by a fingerprint). `conditional` leaves the number of
    classes, or of a vector's numbers, to the data, so that any number agrees with it; and a label
    dropout that is not given agrees with any.
    """
    network = after.network
    if after.conditional and network and before.network and not (network.classes or network.vector):
        told = {"classes": before.network.classes, "vector": before.network.vector}
        after = after.model_copy(update={"network": network.model_copy(update=told)})
    if after.label_dropout is None or not (after.label_dropout or before.label_dropout):
        after = after.model_copy(update={"label_dropout": before.label_dropout})
    old, new = (dict(_leaves(config.model_dump(exclude=_FREE))) for config in (before, after))
    return [
        f"{path}: {old.get(path)!r} → {new.get(path)!r}"
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    ]


_FREE: Any = {
    "name": True,
    "logging": True,
    "data": {"path", "memory", "workers"},
    "training": {"device", "accumulation", "parallel", "deterministic", "on_nonfinite"},
}


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
