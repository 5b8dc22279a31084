"""Configurations: strict, told in one line what is wrong, and the same after JSON."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkdrop.config import (
    Config,
    DataConfig,
    MLPConfig,
    ScheduleConfig,
    TrainingConfig,
    UNetConfig,
    differences,
)
from inkdrop.errors import InkdropError, unknown_name
from inkdrop.settings import Settings, field_paths


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config(traning={}), "unknown field 'traning': did you mean 'training'"),
        (lambda: Config(data={"sorce": "digits"}), "data: .*'sorce': did you mean 'source'"),
        (lambda: Config(network={"kind": "unet", "chanels": 3}), "'chanels': did you mean 'chan"),
        (lambda: Config(zzzzzz=1), "unknown field 'zzzzzz'"),
        (
            lambda: Config(prediction="nois"),
            "prediction: unknown prediction 'nois': did you mean 'noise'. choose from noise, x_st",
        ),
        (lambda: ScheduleConfig(kind="cosin"), "kind: .*'cosin': did you mean 'cosine'"),
        (lambda: Config(schedule={"kind": "cosin"}), "schedule: .*did you mean 'cosine'"),
        (lambda: DataConfig(source="mnst"), "did you mean 'mnist'"),
        (lambda: TrainingConfig(decay="linaer"), "did you mean 'linear'"),
        (lambda: ScheduleConfig(timesteps=0), "timesteps must be greater than 0, got 0"),
        (lambda: ScheduleConfig(timesteps=2.5), "timesteps must be a valid integer.* got 2.5"),
        (lambda: ScheduleConfig(beta_end=1.0), "beta_end must be less than 1, got 1.0"),
        (lambda: TrainingConfig(learning_rate=-1), "learning_rate must be greater than 0, got -1"),
        (lambda: TrainingConfig(learning_rate=math.nan), "learning_rate must .* got nan"),
        (lambda: TrainingConfig(learning_rate=math.inf), "learning_rate must .* got inf"),
        (lambda: UNetConfig(dropout=1.0), "dropout must be less than 1, got 1.0"),
        (lambda: UNetConfig(multipliers=()), "multipliers: .* at least 1 item"),
        (lambda: UNetConfig(multipliers=(1, 0)), "multipliers must be greater than 0, got 0"),
        (lambda: UNetConfig(channels="many"), "channels must be a valid integer.* got 'many'"),
        (
            lambda: Config(network={"kind": "resnet"}),
            "network must be of kind 'unet', 'mlp'.*'resnet'",
        ),
        (
            lambda: ScheduleConfig(kind="cosine", beta_end=0.1),
            "beta_end does not belong to the cosine schedule, which takes max_beta, s, timesteps",
        ),
        (lambda: ScheduleConfig(kind="betas"), "betas needs values"),
        (lambda: TrainingConfig(steps=5, epochs=2), "steps or epochs, not both"),
        (lambda: TrainingConfig(batch_size=10, accumulation=3), "10 cannot be split into 3"),
        (
            lambda: TrainingConfig(batch_size=0, learning_rate=-1),
            "batch_size must .*; learning_rate must",
        ),
    ],
)
def test_a_mistake_is_named_in_one_line(make, message):
    with pytest.raises(InkdropError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
    assert "pydantic" not in str(error.value)


@pytest.mark.parametrize(
    ("assign", "message"),
    [
        (lambda c: setattr(c, "sede", 1), "unknown field 'sede': did you mean 'seed'"),
        (lambda c: setattr(c, "prediction", "nois"), "did you mean 'noise'"),
        (lambda c: setattr(c, "seed", "x"), "seed must be a valid integer.* got 'x'"),
        (lambda c: setattr(c.training, "batch_size", 0), "batch_size must be greater than 0"),
        (lambda c: setattr(c.data, "source", "mnst"), "did you mean 'mnist'"),
        (lambda c: setattr(c, "data", {"sorce": "mnist"}), "did you mean 'source'"),
    ],
)
def test_an_assignment_is_checked_and_a_bad_one_changes_nothing(assign, message):
    config = Config()
    with pytest.raises(InkdropError, match=message) as error:
        assign(config)
    assert "\n" not in str(error.value)
    assert config == Config()


def test_an_assignment_that_contradicts_another_field_changes_nothing():
    training = TrainingConfig(steps=5)
    with pytest.raises(InkdropError, match="steps or epochs, not both"):
        training.epochs = 3
    assert training == TrainingConfig(steps=5)


def test_a_good_assignment_is_taken():
    config = Config()
    config.training.batch_size = 7
    config.network = MLPConfig(width=3)
    assert config.training.batch_size == 7
    assert config.network.width == 3


def test_configurations_share_nothing():
    config = Config()
    config.data.shift = 3
    config.network.channels = 1
    assert Config().data.shift == 0
    assert Config().network.channels == 64


configs = st.builds(
    Config,
    seed=st.integers(),
    prediction=st.sampled_from(["noise", "x_start", "velocity", "score"]),
    schedule=st.one_of(
        st.builds(
            ScheduleConfig,
            timesteps=st.integers(1, 10**6),
            beta_end=st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
        ),
        st.builds(
            ScheduleConfig,
            kind=st.just("betas"),
            values=st.lists(st.floats(0, 1), min_size=1, max_size=4).map(tuple),
        ),
    ),
    network=st.one_of(
        st.none(),
        st.builds(MLPConfig, width=st.integers(1, 99), classes=st.none() | st.integers(1, 9)),
        st.builds(
            UNetConfig,
            multipliers=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
            dropout=st.floats(0, 1, exclude_max=True),
        ),
    ),
    training=st.builds(
        TrainingConfig, learning_rate=st.floats(0, 1, exclude_min=True), steps=st.integers(1, 99)
    ),
)


@given(configs)
def test_a_configuration_is_the_same_after_json(config):
    again = Config.model_validate_json(config.model_dump_json())
    assert again == config
    assert type(again.network) is type(config.network)
    assert differences(config, again) == []


@given(configs)
def test_a_configuration_differs_from_another_by_the_fields_that_are_named(config):
    other = config.model_copy(deep=True)
    other.seed += 1
    other.training.learning_rate += 1
    named = [line.split(":")[0] for line in differences(config, other)]
    assert named == ["seed", "training.learning_rate"]


def test_what_changes_no_result_is_no_difference():
    other = Config(name="another")
    other.logging.metrics_every = 7
    other.data.path = ("elsewhere",)
    assert differences(Config(), other) == []


def test_every_field_says_what_it_is():
    def undocumented(model):
        return [name for name, field in model.model_fields.items() if not field.description]

    for model in (DataConfig, ScheduleConfig, UNetConfig, MLPConfig, TrainingConfig):
        assert undocumented(model) == []


def test_fields_are_known_by_their_path():
    paths = field_paths(Config)
    assert {"seed", "data", "data.source", "network.channels", "network.width"} <= paths


def test_a_model_of_ones_own_is_as_strict():
    class Mine(Settings):
        side: int = 1

    with pytest.raises(InkdropError, match="unknown field 'sid': did you mean 'side'"):
        Mine(sid=2)
    assert isinstance(InkdropError("x"), ValueError)


def test_an_unknown_name_is_told_the_nearest_and_all():
    assert str(unknown_name("fruit", "aple", ["pear", "apple"])) == (
        "unknown fruit 'aple': did you mean 'apple'? choose from pear, apple"
    )
    assert str(unknown_name("fruit", "zzz", ["pear", "apple"])) == (
        "unknown fruit 'zzz': choose from pear, apple"
    )
