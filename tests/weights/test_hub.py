"""Downloads, from a small server on this machine that is laid out like the hub."""

import hashlib
from pathlib import Path

import pytest

from lexiseg.weights.hub import DownloadError, hub_file, is_offline, release_file
from tests.weights.hub_server import Hub, hub_server  # noqa: F401 - a fixture

CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(hub_server: str) -> str:  # noqa: F811
    Hub.files = {"weights.bin": CONTENT}
    return hub_server


def gets() -> list[tuple[str, str | None]]:
    return [(path, ranges) for method, path, ranges in Hub.requests if method == "GET"]


def test_hub_file_is_fetched_once(server: str) -> None:
    path = hub_file("org/repo", "weights.bin", sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert hub_file("org/repo", "weights.bin", sha256=SHA256) == path
    assert gets() == [("/org/repo/resolve/main/weights.bin", None)]


def test_hub_file_from_a_subfolder(server: str) -> None:
    assert hub_file("org/repo", "models/weights.bin").read_bytes() == CONTENT


def test_hub_file_with_a_wrong_hash_is_deleted(server: str) -> None:
    with pytest.raises(DownloadError, match=r"weights\.bin: the hash of the file is"):
        hub_file("org/repo", "weights.bin", sha256="0" * 64)
    with pytest.raises(DownloadError, match="not in the cache"):
        hub_file("org/repo", "weights.bin", offline=True)
    assert hub_file("org/repo", "weights.bin", sha256=SHA256.upper()).read_bytes() == CONTENT


def test_hub_file_that_differs_from_the_hubs_own_hash_is_deleted(server: str) -> None:
    Hub.etag = "1" * 64
    with pytest.raises(DownloadError, match=r"expected 111111111111\.\.\."):
        hub_file("org/repo", "weights.bin")


def test_hub_file_with_an_ordinary_etag(server: str) -> None:
    Hub.etag = "1" * 40
    assert hub_file("org/repo", "weights.bin").read_bytes() == CONTENT


def test_hub_file_too_large_is_not_fetched(server: str) -> None:
    with pytest.raises(DownloadError, match=r"above the limit of 0\.0 MiB"):
        hub_file("org/repo", "weights.bin", max_bytes=1000)
    assert gets() == []


def test_hub_file_without_size_is_not_fetched(server: str) -> None:
    Hub.announce = False
    with pytest.raises(DownloadError, match="does not say how large"):
        hub_file("org/repo", "weights.bin")
    assert gets() == []


def test_hub_file_resumes_a_broken_connection(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    Hub.break_after = [70_000]
    assert hub_file("org/repo", "weights.bin", sha256=SHA256).read_bytes() == CONTENT
    assert [ranges for _, ranges in gets()] == [None, "bytes=70000-"]


def test_hub_file_gives_up_on_a_connection_that_stays_broken(server: str) -> None:
    Hub.break_after = [0] * 50
    with pytest.raises(DownloadError, match="broke off"):
        hub_file("org/repo", "weights.bin")


def test_hub_errors_say_what_to_do(server: str) -> None:
    with pytest.raises(DownloadError, match="no such repository, or it needs a login"):
        hub_file("none/repo", "weights.bin")
    with pytest.raises(DownloadError, match="no such file"):
        hub_file("org/repo", "absent.bin")


def test_hub_unreachable(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hub_file("org/repo", "weights.bin")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub_file("org/repo", "weights.bin") == path
    with pytest.raises(DownloadError, match="cannot be reached"):
        hub_file("org/other", "weights.bin")


def test_hub_offline(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE forbids"):
        hub_file("org/repo", "weights.bin")
    assert Hub.requests == []
    path = hub_file("org/repo", "weights.bin", offline=False)
    assert hub_file("org/repo", "weights.bin") == path


@pytest.mark.parametrize(
    "name", ["../weights.bin", "a/../../b", "/etc/passwd", "a//b", "C:x", "a\\b", "", ".", "x" * 300, "a\0b"]
)
def test_names_that_leave_the_folder_are_refused(name: str, server: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="is not a file name"):
        hub_file("org/repo", name)
    assert Hub.requests == []


@pytest.mark.parametrize("repo", ["repo", "../x", "a/b/c", "a/..", "a/b?c", "/a"])
def test_repository_names_are_checked(repo: str, server: str) -> None:
    with pytest.raises(DownloadError, match="not a hub repository"):
        hub_file(repo, "weights.bin")
    assert Hub.requests == []


def test_release_file_is_fetched_once(server: str, tmp_path: Path) -> None:
    for _ in range(2):
        path = release_file(f"{server}/files/weights.bin", tmp_path / "new", sha256=SHA256)
        assert path == tmp_path / "new" / "weights.bin" and path.read_bytes() == CONTENT
    assert len(gets()) == 1
    assert not path.with_name("weights.bin.part").exists()


def test_release_file_resumes(server: str, tmp_path: Path) -> None:
    Hub.break_after = [1000, 2000]
    assert release_file(f"{server}/files/weights.bin", tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert [ranges for _, ranges in gets()] == [None, "bytes=1000-", "bytes=3000-"]


def test_release_file_resumes_in_a_later_call(server: str, tmp_path: Path) -> None:
    Hub.break_after = [1000, 0, 0, 0]
    with pytest.raises(DownloadError, match="goes on where it stopped"):
        release_file(f"{server}/files/weights.bin", tmp_path, sha256=SHA256)
    assert (tmp_path / "weights.bin.part").stat().st_size == 1000
    assert release_file(f"{server}/files/weights.bin", tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert gets()[-1][1] == "bytes=1000-"


def test_release_file_from_a_server_that_does_not_resume(server: str, tmp_path: Path) -> None:
    Hub.break_after, Hub.resumable = [1000], False
    assert release_file(f"{server}/files/weights.bin", tmp_path, sha256=SHA256).read_bytes() == CONTENT


def test_release_file_that_was_complete_but_not_renamed(server: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin.part").write_bytes(CONTENT)
    assert release_file(f"{server}/files/weights.bin", tmp_path, sha256=SHA256).read_bytes() == CONTENT


def test_release_file_with_a_wrong_hash_leaves_nothing(server: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="the hash of the file is"):
        release_file(f"{server}/files/weights.bin", tmp_path, sha256="0" * 64)
    assert [path.name for path in tmp_path.glob("weights.bin*") if path.suffix != ".lock"] == []


def test_release_file_limits(server: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="above the limit"):
        release_file(f"{server}/files/weights.bin", tmp_path, sha256=SHA256, max_bytes=1000)
    Hub.announce = False
    with pytest.raises(DownloadError, match="does not say how large"):
        release_file(f"{server}/files/weights.bin", tmp_path, sha256=SHA256)


def test_release_file_errors(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match="answered 404"):
        release_file(f"{server}/files/absent.bin", tmp_path, sha256=SHA256)
    for url in ("http://example.org/weights.bin", "file:///etc/passwd", "ftp://example.org/x"):
        with pytest.raises(DownloadError, match="only https"):
            release_file(url, tmp_path, sha256=SHA256)
    with pytest.raises(DownloadError, match="only https"):
        release_file(f"{server}/away", tmp_path, sha256=SHA256)
    with pytest.raises(DownloadError, match="not a file name"):
        release_file(f"{server}/files/..%2Fweights.bin", tmp_path, sha256=SHA256)
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE forbids"):
        release_file(f"{server}/files/weights.bin", tmp_path, sha256=SHA256)


def test_offline_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert not is_offline() and is_offline(True)
