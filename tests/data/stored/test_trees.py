"""Folders, zips and tars are read where they lie, and refused in one line if they are not right."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkdrop.data.stored import archives, tars, zips
from inkdrop.data.stored.trees import Tree, Unreadable, natural_key, open_tree, shown
from inkdrop.errors import InkdropError

FILES = {
    "cats/10.png": b"ten" * 100,
    "cats/2.png": b"two",
    "dogs/1.png": b"",
    "readme.txt": b"hello",
}
IN_ORDER = ["cats/2.png", "cats/10.png", "dogs/1.png", "readme.txt"]
KINDS = ["folder", "zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]
PACKERS = {"tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INKDROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, kind: str, files: dict[str, bytes] = FILES) -> Path:
    """The files as a tree of that kind; its name gives nothing away."""
    if kind == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as archive:
            for name, content in files.items():
                archive.addfile(tar_member(name, size=len(content)), io.BytesIO(content))
        path.write_bytes(PACKERS.get(kind, bytes)(plain.getvalue()))
    return path


def tar_member(name: str, **facts) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for fact, value in facts.items():
        setattr(member, fact, value)
    return member


def write_tar(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def write_zip(path: Path, *members: zipfile.ZipInfo | str, content: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members:
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return path


def contents(tree: Tree) -> dict[str, bytes]:
    return {name: tree.read(name) for name in tree.names}


def refusal(path: Path) -> str:
    with pytest.raises(InkdropError) as error:
        open_tree(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


# Reading


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_any_kind_of_tree_are_the_same(tmp_path, kind):
    tree = open_tree(write(tmp_path / "things", kind))
    assert tree.kind == {"folder": "a folder", "zip": "a zip"}.get(kind, "a tar")
    assert list(tree.names) == IN_ORDER
    assert contents(tree) == FILES
    assert tree.size("cats/10.png") == 300
    assert tree.head("cats/10.png", 4) == b"tent"
    assert tree.head("cats/2.png") == b"two"
    assert tree.head("dogs/1.png") == b""


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_is_read_by_many_threads_at_once(tmp_path, kind):
    files = {f"{i}.bin": bytes([i]) * (1000 + i) for i in range(100)}
    tree = open_tree(write(tmp_path / "things", kind, files))
    with ThreadPoolExecutor(8) as pool:
        for name, content in zip(tree.names * 5, pool.map(tree.read, tree.names * 5), strict=True):
            assert content == files[name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_tree_is_read_in_a_process_that_has_no_torch(tmp_path, kind):
    tree = open_tree(write(tmp_path / "things", kind))
    program = (
        "import pickle, sys; tree = pickle.load(sys.stdin.buffer); "
        "assert 'torch' not in sys.modules; "
        "pickle.dump({name: tree.read(name) for name in tree.names}, sys.stdout.buffer)"
    )
    pickled = pickle.dumps(tree)
    assert len(pickled) < 500
    done = subprocess.run([sys.executable, "-c", program], input=pickled, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert pickle.loads(done.stdout) == FILES


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("kind", KINDS)
def test_forked_processes_do_not_disturb_each_other(tmp_path, kind):
    files = {f"{i}.bin": os.urandom(3000) for i in range(200)}
    tree = open_tree(write(tmp_path / "things", kind, files))
    tree.read("0.bin")
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            os._exit(0 if contents(tree) == files else 1)
        children.append(child)
    assert contents(tree) == files
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_that_changes_before_it_is_read_elsewhere_is_named(tmp_path, kind):
    path = write(tmp_path / "things", kind)
    pickled = pickle.dumps(open_tree(path))
    write(path, kind, FILES | {"more.png": b"more"})
    with pytest.raises(InkdropError, match="things has changed since it was looked through"):
        _ = pickle.loads(pickled).names


@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_changes_with_what_is_stored_and_not_with_the_place(tmp_path, kind):
    path = write(tmp_path / "things", kind)
    before = open_tree(path).identity()
    assert open_tree(path).identity() == before
    path.rename(tmp_path / "elsewhere")
    assert open_tree(tmp_path / "elsewhere").identity() == before
    inside = tmp_path / "elsewhere" / ("cats/2.png" if kind == "folder" else "")
    os.utime(inside, ns=(1, 1))
    touched = open_tree(tmp_path / "elsewhere").identity()
    assert touched != before
    write(tmp_path / "elsewhere", kind, FILES | {"cats/2.png": b"TWO!"})
    os.utime(inside, ns=(2, 2))
    assert open_tree(tmp_path / "elsewhere").identity() not in (before, touched)


def test_two_zips_that_differ_only_in_content_are_told_apart(tmp_path):
    identities = []
    for content in (b"one", b"two"):
        path = write(tmp_path / "things", "zip", {"a.png": content})
        os.utime(path, ns=(1, 1))
        identities.append(open_tree(path).identity())
    assert identities[0] != identities[1]


def test_what_is_no_tree(tmp_path):
    noise = bytes(range(256)) * 40
    for content in (b"", b"PAR1" + noise, noise, bytes(10240), gzip.compress(noise), b"\x1f\x8b"):
        (tmp_path / "something").write_bytes(content)
        assert open_tree(tmp_path / "something") is None


def test_what_does_not_exist(tmp_path):
    assert refusal(tmp_path / "no") == f"no such file or folder: {tmp_path / 'no'}"


def test_a_file_that_is_too_large_for_an_image_is_not_read(tmp_path, monkeypatch):
    tree = open_tree(write(tmp_path / "things", "folder"))
    monkeypatch.setattr("inkdrop.data.stored.tree.LARGEST_FILE", 299)
    with pytest.raises(Unreadable, match="300 bytes are too many"):
        tree.read("cats/10.png")


def test_files_of_no_regular_name_are_read_and_shown_in_one_line(tmp_path):
    names = [b"caf\xe9.png", b"two\nlines.png", "图.png".encode()]
    (tmp_path / "x").mkdir()
    try:
        for name in names:
            Path(os.fsdecode(os.fsencode(tmp_path / "x") + b"/" + name)).write_bytes(name)
    except OSError:
        pytest.skip("the file system refuses such names")
    tree = open_tree(tmp_path / "x")
    assert sorted(tree.read(name) for name in tree.names) == sorted(names)
    assert sorted(map(shown, tree.names)) == ["caf\\udce9.png", "two\\nlines.png", "图.png"]
    assert pickle.loads(pickle.dumps(tree)).identity() == tree.identity()


# Order


def test_numbers_in_names_are_ordered_as_numbers():
    names = ["img1", "img2", "img02x", "img10", "img10b", "imga", "a10/b", "a9/c", "a/z", "a-b"]
    in_order = ["a/z", "a-b", "a9/c", "a10/b", "img1", "img2", "img02x", "img10", "img10b", "imga"]
    assert sorted(names, key=natural_key) == in_order
    assert sorted(["1" * 6000, "2" * 5999], key=natural_key)[0] == "2" * 5999


@given(st.sets(st.text("a1029-. ", min_size=1, max_size=4).filter(str.strip), max_size=8))
def test_a_folder_has_the_order_of_an_archive(tmp_path_factory, parts):
    parts = {part for part in parts if part.strip(". ") == part}
    files = {f"{folder}x/{part}": b"" for folder in parts for part in parts}
    base = tmp_path_factory.mktemp("order")
    if files:
        folder = open_tree(write(base / "folder", "folder", files))
        assert list(folder.names) == list(open_tree(write(base / "zip", "zip", files)).names)
        assert list(folder.names) == sorted(files, key=natural_key)


# Folders


def link(link_: Path, target: Path) -> None:
    try:
        link_.symlink_to(target)
    except OSError:
        pytest.skip("no links here")


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "pool", "folder", {"1.png": b"1", "sub/2.png": b"2"})
    folder = write(tmp_path / "set", "folder", {"a/0.png": b"0"})
    link(folder / "a" / "b", tmp_path / "pool")
    link(folder / "c", tmp_path / "pool")
    link(folder / "a" / "loop", folder)
    link(folder / "file.png", tmp_path / "pool" / "1.png")
    link(folder / "nowhere.png", tmp_path / "gone")
    link(folder / "self", folder / "self")
    tree = open_tree(folder)
    assert contents(tree) == {
        "a/0.png": b"0",
        "a/b/1.png": b"1",
        "a/b/sub/2.png": b"2",
        "c/1.png": b"1",
        "c/sub/2.png": b"2",
        "file.png": b"1",
    }
    circles, odd = tree.notes
    assert "1 link (a/loop)" in circles
    assert "2 entries (nowhere.png, self)" in odd


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path / "set", "folder", {"good/1.png": b"", "locked/2.png": b""})
    scandir = os.scandir

    def locked(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", locked)
    message = refusal(tmp_path / "set")
    assert message == f"cannot read {tmp_path / 'set' / 'locked'}: Permission denied"


def test_a_file_that_has_gone_is_unreadable_and_the_others_are_not(tmp_path):
    tree = open_tree(write(tmp_path / "set", "folder"))
    (tmp_path / "set" / "cats" / "2.png").unlink()
    with pytest.raises(Unreadable) as error:
        tree.read("cats/2.png")
    assert error.value.reason == "No such file or directory"
    assert len(tree.read("cats/10.png")) == 300


# Archives that lead elsewhere

OUTSIDE = {
    "../a.png": "leads out of it by '..'",
    "b/../../a.png": "leads out of it by '..'",
    "b\\..\\..\\a.png": "leads out of it by '..'",
    "/etc/a.png": "has an absolute path",
    "\\\\server\\a.png": "has an absolute path",
    "C:\\a.png": "has a drive letter",
    "c:a.png": "has a drive letter",
}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_an_archive_that_leads_elsewhere_is_refused(tmp_path, kind, name):
    message = refusal(write(tmp_path / "things", kind, {"good.png": b"", name: b""}))
    assert f"is refused, for its member {name} {OUTSIDE[name]}" in message


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_dots_that_lead_nowhere_are_fine(tmp_path, kind):
    tree = open_tree(write(tmp_path / "things", kind, {"./a../b..c.png": b"1"}))
    assert contents(tree) == {"a../b..c.png": b"1"}


def test_backslashes_part_the_names_in_a_zip_from_windows(tmp_path):
    tree = open_tree(write(tmp_path / "things", "zip", {"cats\\1.png": b"1"}))
    assert contents(tree) == {"cats/1.png": b"1"}


def test_a_link_in_a_zip_is_refused(tmp_path):
    member = zipfile.ZipInfo("link.png")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "its member link.png is a link" in refusal(write_zip(tmp_path / "a", "good", member))


@pytest.mark.parametrize(
    ("type_", "fault"),
    [
        (tarfile.SYMTYPE, "is a link"),
        (tarfile.LNKTYPE, "is a link"),
        (tarfile.CHRTYPE, "is no regular file"),
        (tarfile.FIFOTYPE, "is no regular file"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, type_, fault):
    member = tar_member("odd.png", type=type_, linkname="good.png")
    message = refusal(write_tar(tmp_path / "a", tar_member("good.png", size=5), member))
    assert f"its member odd.png {fault}" in message


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "a", "secret.png")
    content = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1
    path.write_bytes(content)
    assert "its member secret.png is encrypted" in refusal(path)


# Bombs


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a", "good.png", "bomb.png", content=bytes(zips.BOMB_BYTES + 1))
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    message = refusal(path)
    assert "good.png would unpack from 32,6" in message
    assert "to 33,554,433 bytes, as a zip bomb does" in message


def test_a_large_file_that_packs_well_but_not_absurdly_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zips, "BOMB_BYTES", 100)
    tree = open_tree(write_zip(tmp_path / "a", "drawing", content=bytes(range(256)) * 20))
    assert len(tree.read("drawing")) == 5120


def test_members_that_share_their_bytes_are_refused(tmp_path):
    path = write_zip(tmp_path / "a", "a.png", "b.png", content=os.urandom(50))
    content = bytearray(path.read_bytes())
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    struct.pack_into("<I", content, second + 42, 0)  # the offset of the first
    path.write_bytes(content)
    assert "shares its bytes with another" in refusal(path)


def test_no_more_is_read_than_a_zip_declares(tmp_path):
    path = write_zip(tmp_path / "a", "liar.png", content=b"x" * 5000)
    content = bytearray(path.read_bytes())
    for header, size in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(header) + size, 100)
    path.write_bytes(content)
    tree = open_tree(path)
    assert tree.size("liar.png") == 100
    with pytest.raises(Unreadable, match="damaged in the zip: Bad CRC-32"):
        tree.read("liar.png")


def test_a_packed_tar_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(tars, "PACKED_BYTES", 1 << 20)
    path = write(tmp_path / "a", "tar.gz", {"bomb.png": bytes(3 << 20)})
    assert "unpack to more than 1,048,576, which no tar of images does" in refusal(path)
    assert list((cache / "unpacked").iterdir()) == []


# Damage


def test_one_damaged_file_in_a_zip_leaves_the_others(tmp_path):
    path = tmp_path / "a"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("1.png", "2.png", "3.png"):
            archive.writestr(name, f"content of {name}")
    path.write_bytes(path.read_bytes().replace(b"content of 2", b"content of X"))
    tree = open_tree(path)
    assert tree.read("1.png") == b"content of 1.png"
    with pytest.raises(Unreadable) as error:
        tree.read("2.png")
    assert error.value.reason == "damaged in the zip: Bad CRC-32 for file '2.png'"
    assert tree.read("3.png") == b"content of 3.png"
    assert pickle.loads(pickle.dumps(error.value)).reason == error.value.reason


@pytest.mark.parametrize("kept", [0.1, 0.6, 0.99])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_an_archive_that_is_cut_off_is_named(tmp_path, kind, kept):
    files = {f"{i}.png": os.urandom(2000) for i in range(20)}
    path = write(tmp_path / f"a.{kind}", kind, files)
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert "damaged or cut off" in refusal(path)


def test_a_tar_that_is_damaged_in_the_middle_is_named(tmp_path):
    path = write(tmp_path / "a", "tar", {f"{i}.png": b"x" * 100 for i in range(5)})
    content = bytearray(path.read_bytes())
    content[2 * 1024 + 100] ^= 1
    path.write_bytes(content)
    assert "at byte 2,048 there is neither a member nor its end" in refusal(path)


def test_what_follows_the_end_of_a_tar_is_noted(tmp_path):
    path = write(tmp_path / "a", "tar")
    path.write_bytes(path.read_bytes() * 2)
    (note,) = open_tree(path).notes
    assert "there is more, which is not read" in note


@given(data=st.data())
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_damaged_archive_is_read_or_refused_but_nothing_else(tmp_path_factory, kind, data):
    path = tmp_path_factory.mktemp("damage") / "archive"
    content = bytearray(write(path, kind, FILES).read_bytes().rstrip(b"\0") + bytes(1024))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    messages = []
    try:
        tree = open_tree(path)
        for name in tree.names if tree else ():
            try:
                assert len(tree.read(name)) == tree.size(name)
            except Unreadable as error:
                messages.append(error.reason)
    except InkdropError as error:
        messages.append(str(error))
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_of_two_files_of_one_name_the_later_is_taken_and_this_is_noted(tmp_path, kind):
    path = write(tmp_path / "a", kind, {"a.png": b"old", "b.png": b"b"})
    if kind == "zip":
        with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
            archive.writestr("a.png", "new")
    else:
        with tarfile.open(path, "a") as archive:
            archive.addfile(tar_member("a.png", size=3), io.BytesIO(b"new"))
    tree = open_tree(path)
    assert contents(tree) == {"a.png": b"new", "b.png": b"b"}
    assert tree.notes == ("there twice, so that the later one is taken: 1 name (a.png)",)


# What is kept of tars


def test_a_packed_tar_is_unpacked_once_and_this_is_noted(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "a.tgz", "tar.gz")
    (note,) = open_tree(path).notes
    (unpacked,) = (cache / "unpacked").iterdir()
    assert note == f"a packed tar can only be read from its start, so it was unpacked to {unpacked}"
    monkeypatch.setattr(tars, "_unpack", None)
    assert contents(open_tree(path)) == FILES
    assert open_tree(path).notes == (note,)


def test_a_packed_tar_that_cannot_be_unpacked_is_named(tmp_path, cache):
    cache.write_text("no folder")
    message = refusal(write(tmp_path / "a.tgz", "tar.gz"))
    assert f"cannot unpack {tmp_path / 'a.tgz'} to {cache}" in message


def test_a_large_tar_is_looked_through_once_whatever_its_name(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(tars, "_WORTH_KEEPING", 4)
    path = write(tmp_path / "a.tar", "tar")
    first = open_tree(path)
    os.link(path, tmp_path / "b.tar")
    look = tars._walk_tar
    monkeypatch.setattr(tars, "_walk_tar", None)
    again = open_tree(tmp_path / "b.tar")
    assert contents(again) == FILES
    assert again.identity() == first.identity()
    monkeypatch.setattr(tars, "_walk_tar", look)
    (kept,) = (cache / "tars").iterdir()
    kept.write_text("{")
    assert contents(open_tree(path)) == FILES


def test_a_tar_replaced_while_it_is_open_is_not_read_as_what_it_was(tmp_path):
    path = write(tmp_path / "a.tar", "tar")
    tree = open_tree(path)
    assert tree.read("cats/2.png") == b"two"
    path.unlink()
    os.utime(write(path, "tar", {"cats/2.png": b"new"}), ns=(1, 1))
    assert open_tree(path).read("cats/2.png") == b"new"
    archives.handle.cache_clear()
    with pytest.raises(Unreadable, match="the archive has changed"):
        tree.read("cats/2.png")


# The real thing


def test_the_emoji_are_the_same_packed_and_unpacked(data_dir, tmp_path):
    packed = open_tree(data_dir / "emoji" / "noto-emoji-32.zip")
    shutil.unpack_archive(packed.path, tmp_path / "unpacked")
    unpacked = open_tree(tmp_path / "unpacked")
    assert len(packed.names) == 3583
    assert list(packed.names) == list(unpacked.names)
    sums = [zlib.crc32(packed.read(name)) for name in packed.names]
    assert sums == [zlib.crc32(unpacked.read(name)) for name in unpacked.names]
