"""Tests of preparing public data, with small archives instead of the real ones, and offline."""

import hashlib
import shutil
import socket
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hydra import compose, initialize_config_dir
from torchvision.datasets.voc import DATASET_YEAR_DICT

from detector.config import parse_train
from detector.data import prepare as module
from detector.data.dataset import DatasetError
from detector.data.prepare import NAMES, prepare, train_command

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VOC2007, TEST2007, VOC2012 = "2007", "2007-test", "2012"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Refuse all connections except to this machine; return the list of refused addresses."""
    asked: list[object] = []
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def refuse(self: socket.socket, address: tuple) -> None:
        if address[0] != "127.0.0.1":
            asked.append(address)
            raise OSError("no network")
        connect(self, address)

    def unknown(host: object, *args: object, **kwargs: object) -> object:
        if host != "127.0.0.1":
            asked.append(host)
            raise socket.gaierror("no network")
        return getaddrinfo(host, *args, **kwargs)

    monkeypatch.setenv("no_proxy", "*")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    return asked


def voc_archive(file: Path, year: str, image_set: str, names: list[str]) -> None:
    """Write a tar file with the layout of the official ones."""
    content = file.parent / f"content_{file.stem}"
    folder = content / "VOCdevkit" / f"VOC{year}"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets" / "Main" / f"{image_set}.txt").write_text("\n".join(names) + "\n")
    for name in names:
        (folder / "JPEGImages" / f"{name}.jpg").write_bytes(b"jpeg")
        (folder / "Annotations" / f"{name}.xml").write_bytes(b"<annotation/>")
    with tarfile.open(file, "w") as tar:
        tar.add(content / "VOCdevkit", "VOCdevkit")
    shutil.rmtree(content)


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of VOC archives with two images each; their checksums replace the official ones."""
    folder = tmp_path / "server"
    folder.mkdir()
    for key, year, image_set, names in (
        (VOC2007, "2007", "trainval", ["000005", "000007"]),
        (TEST2007, "2007", "test", ["000001", "000002"]),
        (VOC2012, "2012", "trainval", ["2008_000002", "2008_000003"]),
    ):
        entry = DATASET_YEAR_DICT[key]
        file = folder / entry["filename"]
        voc_archive(file, year, image_set, names)
        monkeypatch.setitem(entry, "md5", hashlib.md5(file.read_bytes()).hexdigest())
    monkeypatch.setattr(module, "VOC_IMAGES", dict.fromkeys(module.VOC_IMAGES, 2))
    return folder


@pytest.fixture
def served(archives: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve the archives from a local server, whose URLs replace the official ones."""
    handler = partial(SimpleHTTPRequestHandler, directory=archives)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        for key in (VOC2007, TEST2007, VOC2012):
            entry = DATASET_YEAR_DICT[key]
            url = f"http://127.0.0.1:{server.server_port}/{entry['filename']}"
            monkeypatch.setitem(entry, "url", url)
        yield
        server.shutdown()


def test_archives_that_are_there_are_unpacked_once(
    tmp_path: Path,
    archives: Path,
    offline: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "data"
    shutil.copytree(archives, root)
    assert prepare("voc07+12", root)
    devkit = root / "VOCdevkit"
    assert (devkit / "VOC2007" / "JPEGImages" / "000001.jpg").is_file()
    assert (devkit / "VOC2012" / "Annotations" / "2008_000003.xml").is_file()
    command = train_command("voc07+12", root)
    assert capsys.readouterr().out.endswith(f"    {command}\n")

    # The second time there are no archives, and torchvision must not be called.
    for file in root.glob("*.tar"):
        file.unlink()
    monkeypatch.setattr(module, "VOCDetection", None)
    assert prepare("voc07+12", root) and prepare("voc07", root) and prepare("voc12", root)
    assert offline == []
    out = capsys.readouterr().out
    assert f"{devkit / 'VOC2012'}: trainval is there, 2 images" in out
    assert "unpacking" not in out


def test_what_is_missing_is_fetched(tmp_path: Path, served: None) -> None:
    root = tmp_path / "data"
    assert prepare("voc07", root)
    assert (root / "VOCdevkit" / "VOC2007" / "Annotations" / "000001.xml").is_file()
    assert not (root / "VOCdevkit" / "VOC2012").exists()


def test_a_broken_unpacking_is_repaired(tmp_path: Path, archives: Path) -> None:
    prepare("voc12", archives)
    for name in ("JPEGImages/2008_000002.jpg", "Annotations/2008_000003.xml"):
        lost = archives / "VOCdevkit" / "VOC2012" / name
        lost.unlink()
        assert prepare("voc12", archives)
        assert lost.is_file()


def test_a_wrong_checksum_is_refused(
    tmp_path: Path, served: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASET_YEAR_DICT[VOC2012], "md5", "0" * 32)
    with pytest.raises(DatasetError, match="VOC2012 trainval cannot be downloaded .*corrupted"):
        prepare("voc12", tmp_path / "data")
    assert not (tmp_path / "data" / "VOCdevkit").exists()


def test_an_archive_with_too_few_images_is_refused(
    archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VOC_IMAGES", dict.fromkeys(module.VOC_IMAGES, 3))
    with pytest.raises(DatasetError, match="trainval has 2 images with annotations .* expected 3"):
        prepare("voc12", archives)


def test_without_a_network_the_archive_is_named(tmp_path: Path, offline: list[object]) -> None:
    with pytest.raises(DatasetError) as caught:
        prepare("voc07", tmp_path)
    assert DATASET_YEAR_DICT[VOC2007]["url"] in str(caught.value)
    assert f"put the archive into {tmp_path} by hand" in str(caught.value)
    assert offline  # a download was tried


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("unzip")), reason="needs curl and unzip"
)
def test_the_commands_for_coco_do_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server, root = tmp_path / "server", tmp_path / "a folder"
    content = {
        "zips/train2017.zip": [f"train2017/{i}.jpg" for i in range(3)],
        "zips/val2017.zip": ["val2017/0.jpg"],
        "annotations/annotations_trainval2017.zip": [
            f"annotations/instances_{split}2017.json" for split in ("train", "val")
        ],
    }
    shrunk = {}
    for path, names in content.items():
        file = server / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, "content")
        expected = {name: min(number, 3) for name, number in module.COCO[path][1].items()}
        shrunk[path] = (file.stat().st_size, expected | ({"val2017": 1} if "val" in path else {}))
    shrunk["annotations/annotations_trainval2017.zip"][1].pop("val2017", None)
    monkeypatch.setattr(module, "COCO", shrunk)
    monkeypatch.setattr(module, "COCO_URL", server.as_uri())

    # val2017 exists; the annotations are downloaded but not unpacked; train2017 is partly unpacked
    # (one image of three) and partly downloaded.
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        (root / split / "0.jpg").touch()
    shutil.copy(server / "annotations" / "annotations_trainval2017.zip", root)
    whole = (server / "zips" / "train2017.zip").read_bytes()
    (root / "train2017.zip").write_bytes(whole[:20])

    assert not prepare("coco", root)
    out = capsys.readouterr().out
    assert f"{root}: val2017 is there" in out
    commands = [line.strip() for line in out.splitlines() if line.startswith(("    c", "    u"))]
    assert [command.split()[0] for command in commands] == ["curl", "unzip", "unzip"]
    assert "--continue-at -" in commands[0]
    subprocess.run("\n".join(commands), shell=True, check=True, executable="bash", timeout=30)

    assert (root / "train2017.zip").read_bytes() == whole
    assert prepare("coco", root)
    assert "unzip" not in capsys.readouterr().out


def test_the_commands_for_coco_are_official(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not prepare("coco", tmp_path)
    out = capsys.readouterr().out
    for url in (
        "http://images.cocodataset.org/zips/train2017.zip",
        "http://images.cocodataset.org/zips/val2017.zip",
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    ):
        assert url in out
    assert "# 19.34 GB" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_training_command_composes(name: str, tmp_path: Path) -> None:
    command = train_command(name, tmp_path).split()
    assert command[:2] == ["python", "train.py"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = parse_train(compose("train", command[2:]))
    if name == "coco":
        assert config.data.root == str(tmp_path)
        return
    devkit = tmp_path / "VOCdevkit"
    years = {"voc07": ["2007"], "voc12": ["2012"], "voc07+12": ["2007", "2012"]}[name]
    assert config.data.train.roots == [str(devkit / f"VOC{year}") for year in years]
    assert config.data.val.roots == [str(devkit / f"VOC{years[0]}")]


def test_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="voc13 must be one of voc07, voc12, voc07.12, coco"):
        prepare("voc13", tmp_path)
