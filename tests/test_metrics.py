"""metrics.jsonl survives a crash and is rewound with the training."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from inkdrop.metrics import append_metrics, bin_label, read_metrics, rewind_metrics, timestep_bin


def test_rows_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    rows = [{"step": 1, "loss": 0.1}, {"step": 2, "loss": None}]
    for row in rows:
        append_metrics(path, row)
    assert read_metrics(path) == rows


def test_a_line_that_a_crash_cut_off_is_left_out_and_then_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_metrics(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    rewind_metrics(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@given(timesteps=st.integers(1, 3000), data=st.data())
def test_every_timestep_lies_in_the_bin_whose_label_names_it(
    timesteps: int, data: st.DataObject
) -> None:
    timestep = data.draw(st.integers(0, timesteps - 1))
    i = timestep_bin(timestep, timesteps)
    first, last = map(int, bin_label(i, timesteps).split("…"))
    assert 0 <= i < 10
    assert first <= timestep <= last
