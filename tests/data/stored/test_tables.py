"""Tables of points are read as they are meant, or refused with the line and column at fault."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkdrop.data.stored.tables import find_points
from inkdrop.data.stored.tree import shown
from inkdrop.errors import InkdropError


def points(folder, content: str | bytes):
    path = folder / "points.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return find_points(path)


def refusal(folder, content: str | bytes) -> str:
    """The message with which a table is refused; it is one line that names the file."""
    with pytest.raises(InkdropError) as error:
        points(folder, content)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith((str(folder / "points.csv"), "cannot read"))
    return message.removeprefix(str(folder / "points.csv"))


@pytest.mark.parametrize(
    "content",
    [
        "0.5,-1.25\n1e-3,2\n",
        "0.5;-1.25\n1e-3;2",
        "0.5\t-1.25\r\n1e-3\t2\r\n",
        "0.5 -1.25\n1e-3 2\n",
        "  0.5    -1.25  \n\t1e-3  2\n",
        "0.5, -1.25\n1e-3 , 2\n",
        "x,y\n0.5,-1.25\n1e-3,2\n",
        '"x","y"\n"0.5","-1.25"\n"1e-3","2"\n',
        '"x", "y"\n"0.5", "-1.25"\n1e-3, 2\n',
        "x,1\n0.5,-1.25\n1e-3,2\n",
        "x y\n0.5 -1.25\n1e-3 2\n",
        "# x y\n0.5 -1.25\n1e-3 2\n",
        "# made by hand; on a Sunday, at last\n0.5,-1.25\n# half way\n1e-3,2\n# the end\n",
        "\n\n0.5,-1.25\n\n1e-3,2\n\n",
        b"\xef\xbb\xbfx,y\n0.5,-1.25\n1e-3,2\n",
        b"\xef\xbb\xbf0.5,-1.25\n1e-3,2\n",
    ],
)
def test_the_same_points_in_many_forms(tmp_path, content):
    found = points(tmp_path, content)
    assert found.values.dtype == np.float32
    assert found.values.tolist() == np.float32([[0.5, -1.25], [1e-3, 2]]).tolist()
    assert found.labels is None
    assert found.name == "points.csv"


@pytest.mark.parametrize("name", ["label", "Class", "TARGET", " label "])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_column_of_classes_can_be_anywhere(tmp_path, name, place):
    rows = [["x", "y"], ["1", "2"], ["3", "4"], ["5", "6"]]
    for row, value in zip(rows, [name, "red", " blue", "red "], strict=True):
        row.insert(place, value)
    found = points(tmp_path, "\n".join(map(",".join, rows)))
    assert found.values.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [1, 0, 1]
    assert found.class_names == ("blue", "red")


def test_the_header_can_be_a_comment(tmp_path):
    found = points(tmp_path, "# fetched yesterday\n#x,y,label\n1,2,7\n3,4,0\n")
    assert found.values.tolist() == [[1, 2], [3, 4]]
    assert found.labels.tolist() == [7, 0]


@pytest.mark.parametrize("numbers", [("3", "0", "11"), ("3.0", "0.0", "11."), ("3", "0.0", "+11")])
def test_classes_that_are_whole_numbers_stay_as_they_are(tmp_path, numbers):
    found = points(tmp_path, "x,label\n" + "".join(f"1,{number}\n" for number in numbers))
    assert found.labels.tolist() == [3, 0, 11]
    assert found.class_names == ()


def test_other_numbers_are_names(tmp_path):
    found = points(tmp_path, "x,label\n1,1\n2,-1\n3,1\n")
    assert found.labels.tolist() == [1, 0, 1]
    assert found.class_names == ("-1", "1")


def test_one_column_and_many_are_points_too(tmp_path):
    assert points(tmp_path, "1\n2\n3\n").values.shape == (3, 1)
    assert points(tmp_path, ",".join(map(str, range(50)))).values.shape == (1, 50)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": empty: there is no row"),
        (b"\xef\xbb\xbf", ": empty: there is no row"),
        ("\n \n\n", ": empty: there is no row"),
        ("# nothing\n", ": empty: there is no row"),
        ("x,y\n", ": empty: there is a header, but no row"),
        ("x,y\n1,2\n3\n", ", line 3: 1 values, but line 1 has 2"),
        ("1,2\n\n3,4,5\n", ", line 3: 3 values, but line 1 has 2"),
        ("1 2\n3 4 5\n", ", line 2: 3 values, but line 1 has 2"),
        ("x,y\n1,two\n", ", line 2, column 2 (y): 'two' is not a number: a column of classes must"),
        ("1,2\n3,\n", ", line 2, column 2: '' is not a number"),
        ("label,x,y\na,1,2\nb,3,?\n", ", line 3, column 3 (y): '?' is not a number: every column"),
        ("x,label,y\n1,a,2\nb,a,4\n", ", line 3, column 1 (x): 'b' is not a number"),
        ("x;y\n1,5;2\n", ", line 2, column 1 (x): '1,5' is not a number: decimals are written"),
        ("1,2\nnan,4\n", ", line 2, column 1: nan is not finite"),
        ("# 9,8\n1,nan\n", ", line 2, column 2: nan is not finite"),
        ("# x,y\n1,nan\n", ", line 2, column 2 (y): nan is not finite"),
        ("\n1,2\n\n3,-inf\n", ", line 4, column 2: -inf is not finite"),
        ("x,label,y\n1,0,2\n3,0,1e39\n", ", line 3, column 3 (y): 1e+39 is not finite in float32"),
        ("x,label\n1,a\n2,\n", ", line 3: no class"),
        ("label\na\nb\n", ": no numbers: label is the only column"),
        (",x,y\n0,1,2\n", ": column 1 has no name in the header: leave it out if it is an index"),
        ("x,label,class\n1,2,3\n", ": label and class could both be the class"),
        (b"\xff\xfe1\x00,\x002\x00", ": not text in UTF-8"),
        (b"x,y\n\xe9,2\n", ": not text in UTF-8"),
        ('x,y\n"' + "1" * 200_000 + "\n", ": no table (field larger than field limit"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 100 else "",
)
def test_what_is_no_table_of_points(tmp_path, content, message):
    assert refusal(tmp_path, content).startswith(message)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InkdropError, match="cannot read"):
        find_points(tmp_path / "nowhere.csv")


def test_the_identity_changes_with_the_file(tmp_path):
    one = points(tmp_path, "1,2\n").identity
    assert points(tmp_path, "1,2\n3,4\n").identity != one


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    rows=st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.tuples(st.text(min_size=1), st.lists(finite, min_size=width, max_size=width)),
            min_size=1,
        )
    ),
    delimiter=st.sampled_from(",;\t"),
)
def test_what_is_written_is_read(tmp_path_factory, rows, delimiter):
    names = [name.strip().replace("#", "") or "none" for name, _ in rows]
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    width = len(rows[0][1])
    writer.writerow([*(f"x{i}" for i in range(width)), "label"])
    for name, (_, values) in zip(names, rows, strict=True):
        writer.writerow([*map(repr, values), name])
    found = points(tmp_path_factory.getbasetemp(), text.getvalue())
    assert found.values.tolist() == [values for _, values in rows]
    if found.class_names:
        assert [found.class_names[i] for i in found.labels] == list(map(shown, names))
    else:
        assert found.labels.tolist() == [int(float(name)) for name in names]


@given(st.text(alphabet='0123456789.,;-e \t\n#"xylabel', max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    try:
        found = points(folder, text)
    except InkdropError as error:
        message = str(error)
    else:
        message = ""
        assert found.values.ndim == 2
        assert found.values.size > 0
        assert np.isfinite(found.values).all()
    assert "\n" not in message
