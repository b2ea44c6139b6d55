"""Downloading, unpacking, laying out and checking; every server here is on loopback."""

import hashlib
import io
import json
import random
import re
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

import datasets  # noqa: F401 - registers the readers
from dassl.data.datasets import DATASET_REGISTRY
from datasets.preparation import fetch as fetching
from datasets.preparation import prepare as preparing
from datasets.preparation.check import check
from datasets.preparation.fetch import FetchError, Options, fetch
from datasets.preparation.sources import SOURCES, Mirror, Source, SourcePart
from datasets.preparation.unpack import UnpackError, place, unpack
from experiments import preparation_command as prepare_data
from tests.datasets.layouts import BUILDERS, JPEG, awkward, broken, build, image, write_split
from tests.datasets.server import Server

QUICK = Options(timeout=0.3, retries=2, pause=0.01)
CONTENT = random.Random(0).randbytes(300_000)
SHA = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def get(server, tmp_path):
    """Fetch `/file.bin` from the server into a downloads folder."""

    def get(name="file.bin", options=QUICK, **known):
        mirror = Mirror(server.url(f"/{name}"), **known)
        return fetch(mirror, tmp_path, tmp_path / "downloads", options)

    return get


def left_over(tmp_path) -> list[str]:
    names = {path.name for path in (tmp_path / "downloads").iterdir()}
    return sorted(names - {"checksums.json"})


# ------------------------------------------------------------ servers


def test_a_file_is_fetched_verified_and_recorded(server, get, tmp_path):
    server.answers["/file.bin"] = server.file(CONTENT)
    path = get(size=len(CONTENT), digest=SHA)
    assert path.read_bytes() == CONTENT
    assert left_over(tmp_path) == ["file.bin"]
    record = json.loads((tmp_path / "downloads" / "checksums.json").read_text())
    assert record[server.url("/file.bin")] == {
        "file": "file.bin",
        "size": len(CONTENT),
        "sha256": SHA[7:],
    }
    assert get() == path  # it is there
    assert server.requests["/file.bin"] == 1


@pytest.mark.parametrize("silent", [False, True])
def test_a_transfer_that_breaks_goes_on_where_it_was(silent, server, get):
    """Six times 50,000 bytes: it may stumble more often than the tries, as long as it advances."""
    server.answers["/file.bin"] = server.file(CONTENT, stop_at=50_000, silent=silent)
    assert get(digest=SHA).read_bytes() == CONTENT
    assert server.ranges == [None] + [f"bytes={n}-" for n in range(50_000, 300_000, 50_000)]


@pytest.mark.parametrize(
    ("silent", "reason"), [(True, "stays silent"), (False, "stopped at 0 of 300,000")]
)
def test_a_server_that_never_delivers_is_given_up(silent, reason, server, get):
    server.answers["/file.bin"] = server.file(CONTENT, stop_at=0, silent=silent)
    with pytest.raises(FetchError, match=rf"{reason}.*3 tries"):
        get()
    assert server.requests["/file.bin"] == 3


def test_a_second_run_takes_up_where_the_first_stopped(server, get, tmp_path):
    server.answers["/file.bin"] = server.file(CONTENT, stop_at=70_000, silent=True, until=1)
    with pytest.raises(FetchError):
        get(options=Options(timeout=0.2, retries=0, pause=0))
    assert get(digest=SHA).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=70000-"]
    assert left_over(tmp_path) == ["file.bin"]


def test_a_file_that_changed_meanwhile_starts_over(server, get):
    server.answers["/file.bin"] = server.file(b"x" * 1000, tag='"old"', stop_at=500)
    with pytest.raises(FetchError):
        get(options=Options(timeout=0.3, retries=-1, pause=0))
    server.answers["/file.bin"] = server.file(CONTENT, tag='"new"')
    assert get(digest=SHA).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server, get):
    server.answers["/file.bin"] = server.file(CONTENT, stop_at=90_000, until=1, ranges=False)
    assert get(digest=SHA).read_bytes() == CONTENT


def test_all_bytes_there_but_not_yet_named(server, get, tmp_path):
    """Killed between the last byte and the renaming."""
    server.answers["/file.bin"] = server.file(CONTENT, stop_at=299_999, until=1)
    with pytest.raises(FetchError):
        get(options=Options(timeout=0.3, retries=-1, pause=0))
    part = next((tmp_path / "downloads").glob("*.part"))
    part.write_bytes(CONTENT)
    assert get(digest=SHA).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"digest": "sha256:" + "0" * 64}, "has the sha256"),
        ({"digest": "md5:" + "0" * 32}, "has the md5"),
        ({"size": 299_999}, "offers 300,000 bytes, expected 299,999"),
    ],
)
def test_the_wrong_file_is_refused_and_not_kept(known, reason, server, get, tmp_path):
    server.answers["/file.bin"] = server.file(CONTENT)
    with pytest.raises(FetchError, match=reason):
        get(**known)
    assert left_over(tmp_path) == []


PAGE = b"\n<!DOCTYPE html><html><body>Too many users have viewed or downloaded this file"


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_instead_of_the_file_is_refused(kind, server, get, tmp_path):
    server.answers["/file.bin"] = server.file(PAGE, kind=kind)
    with pytest.raises(FetchError, match="web page"):
        get()
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("split.json", b'{"train": [', "not valid JSON"),
        ("images.zip", b"PK is not enough", "not an archive"),
        ("images.tar.gz", b"\x1f\x8b and no more", "not an archive"),
        ("list.txt", b"", "empty"),
    ],
)
def test_what_is_not_what_its_name_says_is_refused(name, content, reason, server, get):
    server.answers[f"/{name}"] = server.file(content)
    with pytest.raises(FetchError, match=reason):
        get(name)


def test_a_dead_link_is_not_asked_twice(server, get):
    with pytest.raises(FetchError, match="404"):
        get()
    assert server.requests["/file.bin"] == 1


def test_a_busy_server_is_asked_again(server, get):
    server.answers["/file.bin"] = server.error(503, then=server.file(CONTENT))
    assert get(digest=SHA).read_bytes() == CONTENT


def test_no_server_at_all(tmp_path):
    server = Server()
    url = server.url("/file.bin")
    server.close()
    with pytest.raises(FetchError, match="refused"):
        fetch(Mirror(url), tmp_path, tmp_path / "downloads", QUICK)


def test_a_file_put_there_by_hand_is_taken(server, get, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "file.bin").write_bytes(CONTENT)
    assert get(digest=SHA).read_bytes() == CONTENT
    assert not server.requests
    (tmp_path / "downloads" / "file.bin").write_bytes(b"half")
    with pytest.raises(FetchError, match=r"file\.bin has .*delete it"):
        get(digest=SHA)


def no_room(*args):
    raise OSError(28, "No space left on device")


def test_a_full_disk_names_the_file(server, get, monkeypatch):
    server.answers["/file.bin"] = server.file(CONTENT)
    monkeypatch.setattr(fetching, "_append", no_room)
    with pytest.raises(OSError, match=r"No space left on device: '.*/downloads/file\.bin\..*part'"):
        get()


# ------------------------------------------------------------ Google Drive


def drive(monkeypatch, download) -> Mirror:
    import gdown

    monkeypatch.setattr(gdown, "download", download)
    return Mirror("gdrive:ID", "split.json")


def test_google_drive(monkeypatch, tmp_path):
    def download(id, output, quiet, resume):
        assert (id, resume) == ("ID", True)
        Path(output).write_text("{}")
        return output

    mirror = drive(monkeypatch, download)
    assert fetch(mirror, tmp_path, tmp_path / "downloads", QUICK).read_text() == "{}"
    assert left_over(tmp_path) == ["split.json"]


def _quota(**_):
    from gdown.exceptions import FileURLRetrievalError

    raise FileURLRetrievalError("Too many users have viewed\n or downloaded this file recently")


def _page(output, **_):
    Path(output).write_bytes(PAGE)
    return output


def _offline(**_):
    raise ConnectionError("no route")


@pytest.mark.parametrize(
    ("download", "reason"),
    [
        (_quota, "refuses .*Too many users have viewed or downloaded"),
        (_page, "web page"),
        (_offline, "cannot be reached"),
        (lambda **_: None, "gives no file"),
    ],
)
def test_google_drive_refuses(download, reason, monkeypatch, tmp_path):
    mirror = drive(monkeypatch, download)
    with pytest.raises(FetchError, match=reason):
        fetch(mirror, tmp_path, tmp_path / "downloads", QUICK)
    assert left_over(tmp_path) == []


# ------------------------------------------------------------ archives


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info, b"content" if kind == tarfile.REGTYPE else b""


@pytest.mark.parametrize(
    "evil",
    [
        [member("../evil")],
        [member("a/../../evil")],
        [member("/evil")],
        [member("..\\evil")],
        [member("C:/evil")],
        [member("out", tarfile.SYMTYPE, "/etc/passwd")],
        [member("out", tarfile.SYMTYPE, "../secret")],
        [member("a/out", tarfile.SYMTYPE, "../../secret")],
        [member("out", tarfile.LNKTYPE, "../secret")],
        [member("out", tarfile.SYMTYPE, "."), member("out/evil")],
        [member("loop", tarfile.SYMTYPE, "loop")],
        [member("gone", tarfile.LNKTYPE, "nothing")],
        [member("pipe", tarfile.FIFOTYPE)],
        [member("null", tarfile.CHRTYPE)],
        [member("a"), member("a/b")],
    ],
)
def test_a_malicious_tar_is_refused(evil, tmp_path):
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UnpackError):
        unpack(tar(tmp_path / "a.tar.gz", *evil), folder)
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "a.tar.gz", "folder"}
    assert not [p for p in folder.rglob("*") if p.is_symlink() or "secret" in p.read_text()]


def test_links_inside_become_copies(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    archive = tar(
        tmp_path / "a.tar",
        member("a/one"),
        member("a/hard", tarfile.LNKTYPE, "a/one"),
        member("b/soft", tarfile.SYMTYPE, "../a/one"),
        mode="w",
    )
    unpack(archive, folder)
    for name in ("a/one", "a/hard", "b/soft"):
        path = folder / name
        assert path.read_text() == "content" and not path.is_symlink()
        assert path.stat().st_nlink == 1


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil"])
def test_a_malicious_zip_is_refused(name, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fine", "x")
        archive.writestr(name, "evil")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnpackError, match="leads out"):
        unpack(path, tmp_path / "folder")
    assert not list(tmp_path.rglob("evil*"))


def test_a_link_in_a_zip_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("out")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnpackError, match="is a link"):
        unpack(path, tmp_path / "folder")


def test_a_zip_larger_than_the_disk_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 20))
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 19)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UnpackError, match="1,048,576 bytes"):
        unpack(path, tmp_path)


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "tar"])
def test_half_an_archive_is_damaged(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", CONTENT)
    else:
        info = tarfile.TarInfo("a")
        info.size = len(CONTENT)
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.addfile(info, io.BytesIO(CONTENT))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnpackError, match="damaged|not an archive"):
        unpack(path, tmp_path / "folder")


def test_a_tar_larger_than_the_disk_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in "ab":
            info = tarfile.TarInfo(name)
            info.size = 1 << 20
            archive.addfile(info, io.BytesIO(bytes(1 << 20)))
    usage = shutil.disk_usage(tmp_path)._replace(free=3 << 19)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnpackError, match="needs 1,048,576 bytes more, 524,288 are free"):
        unpack(path, tmp_path / "folder")
    assert not (tmp_path / "folder" / "b").exists()


@pytest.mark.parametrize("place", [-8, -5, -4, -1])
def test_gzips_checksum_counts(place, tmp_path):
    path = tar(tmp_path / "a.tar.gz", member("a"))
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnpackError, match="damaged"):
        unpack(path, tmp_path / "folder")


@pytest.mark.parametrize("name", ["", ".", "./", "a" * 300, "/".join(["abc"] * 1000)])
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_names_that_no_file_can_have(kind, name, tmp_path):
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(name), "x")
    else:
        tar(path, member(name))
    (tmp_path / "folder").mkdir()
    if kind == "zip" and name == "./":  # a folder, in a zip
        return unpack(path, tmp_path / "folder")
    with pytest.raises(UnpackError, match="without a name|longer than|damaged"):
        unpack(path, tmp_path / "folder")


@pytest.mark.parametrize("around", ["", "images", "pack/data", "a/b/pack"])
def test_the_wanted_folder_is_found_in_whatever_was_packed(around, tmp_path):
    image(tmp_path / "u" / around / "images" / "1.jpg")
    (tmp_path / "u" / around / "list.txt").write_text("x")
    target = tmp_path / "set"
    assert not place(tmp_path / "u", target, ("images", "masks"))
    assert not target.exists()
    assert place(tmp_path / "u", target, ("images", "list.txt"))
    assert (target / "images" / "1.jpg").is_file() and (target / "list.txt").is_file()


def test_archives_inside_the_archive(tmp_path):
    """ImageNet's training archive: one of loose files per class. Caltech's: one of a folder."""
    inner = tmp_path / "u"
    tar(inner / "n01.tar", member("1.JPEG"), member("2.JPEG"), mode="w")
    tar(inner / "n02.tar", member("3.JPEG"), mode="w")
    assert place(inner, tmp_path / "train", ("n01",))
    names = sorted(str(p.relative_to(tmp_path / "train")) for p in (tmp_path / "train").glob("*/*"))
    assert names == ["n01/1.JPEG", "n01/2.JPEG", "n02/3.JPEG"]

    inner = tmp_path / "v" / "caltech-101"
    tar(inner / "101_ObjectCategories.tar.gz", member("101_ObjectCategories/Faces/1.jpg"))
    assert place(tmp_path / "v", tmp_path / "caltech", ("101_ObjectCategories",))
    assert (tmp_path / "caltech" / "101_ObjectCategories" / "Faces" / "1.jpg").is_file()


def test_files_that_are_there_already_stay(tmp_path):
    target = tmp_path / "set"
    image(target / "images" / "1.jpg")
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "u" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "u" / "images" / name).write_text("new")
    assert place(tmp_path / "u", target, ("images",))
    assert (target / "images" / "1.jpg").read_bytes() == JPEG
    assert (target / "images" / "2.jpg").read_text() == "new"


# ------------------------------------------------------------ the command


class Pets:
    """A miniature of Oxford Pets on the server, and the command that gets it."""

    def __init__(self, server: Server, tmp_path: Path, monkeypatch) -> None:
        self.server, self.root = server, tmp_path / "data"
        made = tmp_path / "made"
        self.expected = build("OxfordPets", made)
        split = write_split(made, self.expected)
        folder = made / "oxford_pets"
        sizes = (len(self.expected.classnames), *map(len, split.values()))
        monkeypatch.setattr(DATASET_REGISTRY.get("OxfordPets"), "sizes", sizes)
        for name in ("images", "annotations"):
            with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as archive:
                archive.add(folder / name, name)
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            for path in folder.rglob("*"):
                archive.write(path, Path("packed") / "oxford_pets" / path.relative_to(folder))
        self.files = {
            "split.json": (folder / self.expected.split_file).read_bytes(),
            **{
                name: (tmp_path / name).read_bytes()
                for name in ("images.tar.gz", "annotations.tar.gz", "all.zip")
            },
        }
        for name in self.files:
            self.serve(name)
        shutil.rmtree(made)

        def part(name, *contents, needed=True):
            mirrors = (Mirror(server.url(f"/dead/{name}")), Mirror(server.url(f"/{name}")))
            return SourcePart("oxford_pets", contents, mirrors, needed)

        source = Source(
            "https://pets.example",
            "CC",
            (
                part("split.json", self.expected.split_file),
                part("images.tar.gz", "images"),
                part("annotations.tar.gz", "annotations", needed=False),
            ),
            (Mirror(server.url("/all.zip")),),
        )
        monkeypatch.setitem(SOURCES, "OxfordPets", source)

    def serve(self, name: str, **how) -> None:
        self.server.answers[f"/{name}"] = self.server.file(self.files[name], **how)

    def run(self, *options: str) -> int:
        return prepare_data.main(
            [
                "oxford_pets",
                "--root",
                str(self.root),
                "--timeout",
                "0.3",
                "--retries",
                "0",
                *options,
            ]
        )

    def downloads(self) -> set[str]:
        return {path.name for path in (self.root / "downloads").iterdir()} - {"checksums.json"}


@pytest.fixture
def pets(server, tmp_path, monkeypatch):
    return Pets(server, tmp_path, monkeypatch)


def test_the_command_gets_everything_and_then_nothing(pets, capsys):
    assert pets.run() == 0
    assert "OxfordPets  yes    4" in capsys.readouterr().out
    assert pets.downloads() == set()
    assert not (pets.root / preparing.UNPACKING).exists()
    before = sum(pets.server.requests.values())
    assert pets.run() == 0
    assert sum(pets.server.requests.values()) == before
    assert prepare_data.main(["--check", "OxfordPets", "--root", str(pets.root)]) == 0


def test_a_full_disk_is_one_line(pets, capsys, monkeypatch):
    monkeypatch.setattr(fetching, "_append", no_room)
    with pytest.raises(SystemExit) as ended:
        pets.run()
    assert ended.value.code == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"error: cannot write {pets.root}/downloads/")
    assert "No space left on device (" in told and "free); make room" in told


def test_mirrors_are_tried_in_turn_and_named(pets, capsys):
    del pets.server.answers["/split.json"]
    assert pets.run() == 1
    captured = capsys.readouterr()
    error = captured.err[captured.err.index("OxfordPets: ") :]
    for name in ("/dead/split.json", "/split.json"):
        assert f"{pets.server.url(name)} (split.json): answers 404" in error
    assert str(pets.root / "downloads") in error and "by hand" in error
    assert "would draw a split" in captured.out
    assert pets.server.requests["/all.zip"] == 0  # not for a list alone
    (pets.root / "downloads" / "split.json").write_bytes(pets.files["split.json"])  # by hand
    assert pets.run() == 0


def test_an_archive_of_the_whole_is_the_last_resort(pets):
    for name in ("images.tar.gz", "split.json"):
        del pets.server.answers[f"/{name}"]
    assert pets.run() == 0
    assert pets.server.requests["/all.zip"] == 1


def test_an_interrupted_command_goes_on(pets):
    half = len(pets.files["images.tar.gz"]) // 2
    pets.serve("images.tar.gz", stop_at=half, silent=True, until=1)
    del pets.server.answers["/all.zip"]
    assert pets.run() == 1
    assert pets.run() == 0
    assert f"bytes={half}-" in pets.server.ranges


def test_killed_while_unpacking(pets, monkeypatch):
    """Nothing is taken for complete that isn't."""
    calls = []

    def killed(*args):
        calls.append(args)
        (args[1] / "images").mkdir()
        (args[1] / "images" / "half.jpg").write_bytes(b"x")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "unpack", killed)
        with pytest.raises(SystemExit, match="130"):
            pets.run()
    assert calls
    assert pets.run() == 0
    assert not (pets.root / "oxford_pets" / "images" / "half.jpg").exists()


def test_a_malicious_or_wrong_archive_is_put_aside(pets, tmp_path):
    evil = tar(tmp_path / "evil.tar.gz", member("images/1.jpg"), member("../evil"))
    pets.files["images.tar.gz"] = evil.read_bytes()
    pets.serve("images.tar.gz")
    assert pets.run() == 0  # from the archive of the whole
    assert pets.downloads() == {"images.tar.gz.unusable"}
    assert not list(pets.root.rglob("evil"))


def test_archives_are_kept_on_request(pets):
    assert pets.run("--keep") == 0
    assert pets.downloads() == {"split.json", "images.tar.gz", "annotations.tar.gz"}


def test_what_a_person_put_there_is_not_deleted(pets):
    (pets.root / "downloads").mkdir(parents=True)
    for name in ("split.json", "images.tar.gz"):
        (pets.root / "downloads" / name).write_bytes(pets.files[name])
    assert pets.run() == 0
    assert pets.downloads() == {"split.json", "images.tar.gz"}
    assert not pets.server.requests["/images.tar.gz"]


def test_what_is_not_needed_is_only_mentioned(pets, capsys):
    del pets.server.answers["/annotations.tar.gz"]
    assert pets.run() == 0
    assert "don't need it" in capsys.readouterr().err


def test_two_commands_at_once(pets):
    import fcntl

    pets.root.mkdir()
    with open(pets.root / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit) as ending:
            pets.run()
    assert ending.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["oxfordpet"], "did you mean 'oxfordpets'"),
        ([], "name a data set"),
        (["--chek"], "--chek"),
        (["ImageFolder"], "not to be downloaded"),
    ],
)
def test_mistakes_in_the_command_are_one_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ending:
        prepare_data.main([*arguments, "--root", str(tmp_path)])
    assert ending.value.code == 2
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as ending:
        prepare_data.main(["--check", "--root", str(tmp_path / "nowhere")])
    assert ending.value.code == 2


def test_imagenet_says_what_to_get_and_where_to_put_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fetching, "_from_drive", lambda *_: pytest.fail("no network in tests"))
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "classnames.txt").write_text("n01440764 tench\n")
    assert prepare_data.main(["imagenet", "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    for name in ("img_train.tar", "img_val.tar", "devkit_t12.tar.gz"):
        assert f"ILSVRC2012_{name}" in error
    assert "https://image-net.org/challenges/LSVRC/2012" in error
    assert str(tmp_path / "downloads") in error


def test_classnames_are_copied_from_imagenet(tmp_path):
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "classnames.txt").write_text("n01440764 tench\n")
    part = next(p for p in SOURCES["ImageNetA"].parts if p.contents == ("classnames.txt",))
    path = fetch(part.mirrors[0], tmp_path, tmp_path / "downloads", QUICK)
    assert path.read_text() == "n01440764 tench\n"


def test_the_table_of_sources_is_sound():
    assert set(SOURCES) == set(BUILDERS)
    archives: dict[str, set[str]] = {}
    for name, source in SOURCES.items():
        reader = DATASET_REGISTRY.get(name)
        for part in source.parts:
            assert part.folder.partition("/")[0] == reader.dataset_dir
            assert part.contents and part.mirrors
        if reader.split_file:
            assert any(reader.split_file in part.contents for part in source.parts)
        every = [m for part in source.parts for m in part.mirrors] + [*source.bundles]
        for mirror in every:
            assert mirror.url.startswith(("https://", "gdrive:", "root:", "hand:https://"))
            assert mirror.file_name and "/" not in mirror.file_name
            kind, _, digest = mirror.digest.partition(":")
            assert (kind, len(digest)) in (("", 0), ("md5", 32), ("sha256", 64))
            archives.setdefault(mirror.file_name, set()).add(mirror.digest)
    # One name in the downloads folder never means two files.
    assert all(len(digests) == 1 for digests in archives.values())


# ------------------------------------------------------------ checking


def test_check_against_published_counts(pets, capsys):
    assert pets.run() == 0
    folder = pets.root / "oxford_pets"
    (folder / "images" / "pug_1.jpg").unlink()
    path = folder / pets.expected.split_file
    split = json.loads(path.read_text())
    split["train"].pop()
    path.write_text(json.dumps(split))
    capsys.readouterr()
    assert prepare_data.main(["--check", "OxfordPets", "--root", str(pets.root)]) == 1
    out = capsys.readouterr().out
    assert "19 of 20" in out
    assert f"missing: {folder / 'images' / 'pug_1.jpg'}" in out


def test_check_writes_nothing(tmp_path):
    build("DescribableTextures", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    finding = check(DATASET_REGISTRY.get("DescribableTextures"), str(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    assert finding.found and not finding.complete
    assert "would draw a split" in finding.notes[0]


def test_check_tells_a_drawn_split_from_the_published(tmp_path):
    build("DescribableTextures", tmp_path)
    reader = DATASET_REGISTRY.get("DescribableTextures")
    reader.open(str(tmp_path)).load_lists()
    assert "drawn here" in check(reader, str(tmp_path)).notes[0]


def test_check_of_one_s_own_folder(tmp_path, capsys):
    for name in ("cat", "dog"):
        for i in range(6):
            image(tmp_path / name / f"{i}.jpg")
    DATASET_REGISTRY.get("ImageFolder").open(str(tmp_path)).load_lists()
    assert prepare_data.main(["--check", "ImageFolder", "--decode", "--root", str(tmp_path)]) == 0
    assert "ImageFolder  yes    2" in capsys.readouterr().out


def test_check_names_every_image_that_cannot_be_decoded(tmp_path, capsys):
    awkward(tmp_path / "cat")
    broken(tmp_path / "cat")
    for i in range(4):
        image(tmp_path / "dog" / f"{i}.jpg")
    DATASET_REGISTRY.get("ImageFolder").open(str(tmp_path)).load_lists()
    assert prepare_data.main(["--check", "ImageFolder", "--decode", "--root", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    named = set(re.findall(r"unreadable: cannot decode the image .*/(\S+\.\w{3}):", out))
    assert named == {"truncated.jpg", "zero.jpg", "text.png"}
