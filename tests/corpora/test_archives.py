"""Archives are unpacked whole or refused in one line: damage, tricks, other formats, no room, links, leftovers."""

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile

import pytest
from etils import epath

from mser_jax.corpora import archives, scratch, source

FILES = {f"Actor_{n:02}/{m}.wav": os.urandom(700 + 411 * n) for n in (1, 2, 3) for m in "ab"}
PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def tar(files=FILES, end=True, members=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for member in members:
            archive.addfile(member)
        length = archive.offset
    return buffer.getvalue() if end else buffer.getvalue()[:length]


def zipped(files=FILES, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def opened(path, scratch_folder, nested=True):
    """What a source holds: path below it -> bytes."""
    with source.opened(path, scratch_folder, nested=nested) as folder:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in source.walk(folder)}


def refused(path, tmp_path, message):
    with pytest.raises((ValueError, OSError), match=message) as caught:
        opened(path, tmp_path / "scratch")
    assert os.fspath(path) in str(caught.value) and "\n" not in str(caught.value), "one line that names it"
    assert not list((tmp_path / "scratch").glob("unpacked.*")), "nothing is left"


@pytest.mark.parametrize("ending", PACKERS)
def test_a_tar_is_there_whole_or_refused_wherever_it_is_cut_or_changed(tmp_path, ending):
    whole = PACKERS[ending](tar())
    path = tmp_path / f"corpus.tar{ending}"
    path.write_bytes(whole)
    assert opened(path, tmp_path / "scratch") == FILES
    inner = tar(end=False)  # 1,024 zeros and padding follow, of which the first 512 are the end
    cuts = {512, 513, 511, 1024, len(inner), len(inner) - 512, *range(700, len(inner), 1537)}
    if ending:
        cuts = {1, 5, len(whole) - 1, len(whole) - 4, len(whole) - 9, *range(20, len(whole), len(whole) // 12)}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        refused(path, tmp_path, "damaged archive .*Download it again")
    spoiled = bytearray(whole)
    spoiled[len(whole) // 2 if ending else 1024 + 512 + 148] ^= 0x10  # data, or the checksum in a header
    path.write_bytes(spoiled if ending else flipped_header(whole))
    refused(path, tmp_path, "damaged archive")


def flipped_header(whole):
    """A bit of the name in the header of the third member."""
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        at = archive.getmembers()[2].offset
    return whole[: at + 3] + bytes([whole[at + 3] ^ 2]) + whole[at + 4 :]


def test_a_tar_after_a_tar_is_not_passed_over(tmp_path):
    (tmp_path / "two.tar").write_bytes(tar(dict(list(FILES.items())[:2])) + tar())
    refused(tmp_path / "two.tar", tmp_path, "more follows the end")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_is_there_whole_or_refused(tmp_path, method):
    whole, path = zipped(method=method), tmp_path / "corpus.zip"
    path.write_bytes(whole)
    assert opened(path, tmp_path / "scratch") == FILES
    for cut in (30, 400, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refused(path, tmp_path, "damaged archive")
    spoiled = bytearray(whole)
    spoiled[600] ^= 1  # data of the first member
    path.write_bytes(spoiled)
    refused(path, tmp_path, "damaged archive .*Download it again")


def patched(position_in_local, position_in_central, value):
    """A zip with two bytes of every member's headers replaced."""
    data = bytearray(zipped())
    for magic, position in ((b"PK\x03\x04", position_in_local), (b"PK\x01\x02", position_in_central)):
        at = -1
        while (at := data.find(magic, at + 1)) >= 0:
            data[at + position : at + position + 2] = value.to_bytes(2, "little")
    return bytes(data)


def long_name(size):
    """The header of a name of `size` bytes, and a block of it."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, size
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(512)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.zip", lambda: patched(6, 8, 1), "encrypted.*unpack it yourself"),
        ("a.zip", lambda: patched(8, 10, 9), "Deflate64.*unpack it yourself"),
        ("a.zip", lambda: patched(8, 10, 99), "AES"),
        ("a.zip", lambda: patched(8, 10, 77), "number 77"),
        ("a.zip", lambda: b"Rar!\x1a\x07\x01\x00rest", "a RAR archive.*unpack it yourself"),
        ("a.tar.gz", lambda: b"7z\xbc\xaf\x27\x1crest", "a 7z archive.*unpack it yourself"),
        ("a.7z", lambda: b"?" * 99, "unpack it yourself"),
        ("a.zip.001", lambda: b"?" * 99, "Join the parts"),
        ("a.tar.zst", lambda: b"\x28\xb5\x2f\xfdrest", "zstd"),
        ("a.zip", lambda: b"\n <!DOCTYPE html><html>Log in", "a web page"),
        ("a.tgz", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("a.tar", lambda: b"", "empty"),
        ("a.zip", lambda: zipped({}), "no file in it"),
        ("a.tar", lambda: tar({}), "no file in it"),
        ("a.tar.gz", lambda: gzip.compress(b"no tar at all"), "damaged archive"),
        ("notes.txt", lambda: b"words", "expected a folder or an archive"),
        ("a.zip", lambda: zipped({"../../out.wav": b"x"}), "would land outside"),
        ("a.tar", lambda: tar({"x/../../../out.wav": b"x"}), "would land outside"),
        ("a.zip", lambda: zipped({"a/" + "n" * 300: b"x"}), "name too long"),
        ("a.tar", lambda: tar({"a": b"x", "a/b.wav": b"y"}), "cannot be written"),
        ("a.zip", lambda: zipped({"a/" * 200 + "b.wav": b"y"}), "201 folders in each other"),
        ("a.tar", lambda: long_name(5 << 20), "a name of 5242880 bytes"),
    ],
)  # fmt: skip
def test_what_cannot_be_unpacked_is_told_with_advice(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content())
    refused(tmp_path / name, tmp_path, message)
    assert not list(tmp_path.rglob("out.wav"))


def test_a_part_of_a_split_zip_is_told(tmp_path):
    (tmp_path / "all.zip").write_bytes(zipped())
    (tmp_path / "all.z01").write_bytes(b"PK\x07\x08")
    refused(tmp_path / "all.zip", tmp_path, "split archive. Join all parts")


@pytest.mark.parametrize(("name", "packed"), [("a.tar.gz", zipped), ("a.zip", tar), ("download", zipped)])
def test_the_content_tells_what_an_archive_is(tmp_path, name, packed):
    (tmp_path / name).write_bytes(packed())
    assert opened(tmp_path / name, tmp_path / "scratch") == FILES


def link(name, to, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def test_links_in_a_tar_become_their_files_and_cannot_leave(tmp_path):
    links = [link("Actor_01/same.wav", "a.wav"), link("again.wav", "Actor_01/a.wav", tarfile.LNKTYPE)]
    links += [link("Actor_02/x.wav", "../again.wav"), link("round", "round"), link("up", "."), link("gone", "nowhere")]
    (tmp_path / "a.tar").write_bytes(tar(members=links))
    first = FILES["Actor_01/a.wav"]
    more = {"Actor_01/same.wav": first, "again.wav": first, "Actor_02/x.wav": first}
    assert opened(tmp_path / "a.tar", tmp_path / "scratch") == FILES | more
    device = tarfile.TarInfo("null")
    device.type = tarfile.CHRTYPE
    for member in (link("p", "/etc/passwd"), link("Actor_01/p", "../../../etc"), device):
        (tmp_path / "a.tar").write_bytes(tar(members=[member]))
        refused(tmp_path / "a.tar", tmp_path, "outside|device")


def test_names_of_other_systems(tmp_path):
    """Backslashes; names that are not UTF-8, in a zip and a tar; absolute ones; two that differ in case."""
    names = {"A\\b.wav": b"1", "/abs/c.wav": b"2", "x/A.wav": b"3", "x/a.wav": b"4"}
    (tmp_path / "a.zip").write_bytes(zipped(names))
    assert set(opened(tmp_path / "a.zip", tmp_path / "s")) == {"A/b.wav", "abs/c.wav", "x/A.wav", "x/a.wav"}
    (tmp_path / "a.tar").write_bytes(tar({"Col\udce8re/1.wav": b"1"}))
    with source.opened(tmp_path / "a.tar", tmp_path / "s") as folder:
        (path,) = source.walk(folder)
        assert source.readable(path.relative_to(folder)) == "Col\\xe8re/1.wav" and path.read_bytes() == b"1"


@pytest.mark.parametrize("packed", [tar, lambda f: gzip.compress(tar(f)), zipped])
def test_more_than_the_disk_holds_is_told_before_it_is_written(tmp_path, monkeypatch, packed):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3 << 20))
    (tmp_path / "a.zip").write_bytes(packed({"1.wav": bytes(1 << 20), "2.wav": bytes(4 << 20)}))
    refused(tmp_path / "a.zip", tmp_path, r"needs at least 5\.0 MiB unpacked, 3\.0 MiB are free")
    # Many files that are small each take a block of the disk each; archives in archives count together.
    (tmp_path / "a.zip").write_bytes(packed({f"{n}.wav": b"x" for n in range(1000)}))
    refused(tmp_path / "a.zip", tmp_path, "MiB are free")
    inner = zipped({"1.wav": bytes(1 << 20)})
    (tmp_path / "a.zip").write_bytes(packed({f"{n}.zip": inner for n in range(5)}))
    refused(tmp_path / "a.zip", tmp_path, "MiB are free")


def test_a_member_that_is_longer_than_it_says(tmp_path):
    data = bytearray(zipped({"1.wav": bytes(5000)}))
    for magic, position in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.find(magic)
        data[at + position : at + position + 4] = (100).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    refused(tmp_path / "a.zip", tmp_path, "damaged archive")


def test_archives_in_archives_end(tmp_path):
    data = zipped({"1.wav": b"sound"})
    for depth in range(6):
        (tmp_path / "a.zip").write_bytes(data)
        if depth < archives.MAX_DEPTH:
            found = opened(tmp_path / "a.zip", tmp_path / "scratch")
            assert list(found.values()) == [b"sound"]
        else:
            refused(tmp_path / "a.zip", tmp_path, "more than 4 archives in each other")
        data = zipped({f"{depth}.zip": data})


def test_an_archive_beside_what_was_unpacked_from_it_changes_no_file_of_the_source(tmp_path):
    folder = tmp_path / "source"
    (folder / "Audio").mkdir(parents=True)
    (folder / "Audio" / "1.wav").write_bytes(b"repaired")
    (folder / "Audio.zip").write_bytes(zipped({"1.wav": b"as published"}))
    found = opened(folder, tmp_path / "scratch")
    assert found == {"Audio/1.wav": b"repaired", "again1/Audio/1.wav": b"as published"}
    assert (folder / "Audio" / "1.wav").read_bytes() == b"repaired"


def test_links_that_go_round_end_and_others_are_followed(tmp_path):
    folder, other = tmp_path / "source", tmp_path / "elsewhere"
    for path in (folder / "Actor_01", other / "Actor_02"):
        path.mkdir(parents=True)
        (path / "1.wav").write_bytes(b"x")
    (folder / "Actor_02").symlink_to(other / "Actor_02")
    for place, to in (
        ("loop", "."),
        ("Actor_01/up", ".."),
        ("root", "/"),
        ("a", "b"),
        ("b", "a"),
        ("same", "Actor_01"),
    ):
        (folder / place).symlink_to(to)
    (other / "Actor_02" / "back").symlink_to(folder)
    (folder / "gone.wav").symlink_to("nowhere.wav")
    names = [path.relative_to(folder).as_posix() for path in source.files(epath.Path(folder), (".wav",))]
    assert names == ["Actor_01/1.wav", "Actor_02/1.wav", "gone.wav"]


def test_what_a_killed_process_unpacked_is_removed_and_no_other(tmp_path):
    parent = tmp_path / "data"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom mser_jax.corpora import scratch\n"
        "with scratch.folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'a.wav').write_bytes(b'x')\n    print(folder.name, flush=True)\n    time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(parent)]
    lives, dies = (subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2))
    try:
        alive, dead = lives.stdout.readline().strip(), dies.stdout.readline().strip()
        dies.send_signal(signal.SIGKILL)
        dies.wait()
        assert (parent / dead / "a.wav").exists()
        with scratch.folder(parent) as folder:
            assert {path.name for path in parent.iterdir()} == {alive, folder.name}
    finally:
        lives.kill()
        lives.wait()
    (parent / "unpacked.mine").mkdir()  # not a name of ours
    scratch.sweep(parent)
    assert [path.name for path in parent.iterdir()] == ["unpacked.mine"]


@pytest.mark.slow
@pytest.mark.parametrize("packed", [tar, zipped, *(lambda f=f: f(tar()) for f in (gzip.compress, lzma.compress))])
def test_mutated_archives_are_whole_or_refused(tmp_path, packed):
    """Of a tar without checksums the data may differ, but no file is lost or gains bytes."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw, whole = random.Random(seed), packed()
    path = tmp_path / "corpus.archive"
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(data))
            data[at : at + draw.randint(0, 2)] = draw.randbytes(draw.randint(0, 2))
        path.write_bytes(data)
        try:
            found = opened(path, tmp_path / "scratch", nested=False)
        except archives.ArchiveError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            sizes = sorted(map(len, found.values()))
            assert found == FILES or (packed in (tar, zipped) and sizes == sorted(map(len, FILES.values())))
        assert not list((tmp_path / "scratch").glob("unpacked.*"))
