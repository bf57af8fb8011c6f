"""Which folders and files another user could have written to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vramkit._build import _trust


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "mine"
    made.mkdir(0o700)
    return made


def test_a_private_folder_is_trusted(folder: Path) -> None:
    assert _trust.trusted_folder(folder) == folder


def test_links_are_resolved(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "to").symlink_to("deep")
    (folder / "absolute").symlink_to(folder / "to")
    (folder / "deep" / "up").symlink_to("../absolute/../deep")
    assert _trust.trusted_folder(folder / "absolute" / "up") == folder / "deep"


def test_what_a_link_leads_through_is_checked(folder: Path, tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    (open_to_all / "inner").mkdir(parents=True)
    (folder / "link").symlink_to(open_to_all / "inner")
    assert _trust.trusted_folder(folder / "link") == open_to_all / "inner"
    open_to_all.chmod(0o777)
    with pytest.raises(_trust.UntrustedError, match=f"may write to {open_to_all} .mode 0777.; run"):
        _trust.trusted_folder(folder / "link")


def test_the_parent_of_a_links_target_is_the_targets_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "a" / "b")
    assert _trust.trusted_folder(folder / "link" / "..") == tmp_path / "a"


def test_a_loop_of_links_ends(folder: Path) -> None:
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    with pytest.raises(OSError, match="more than 40 symbolic links"):
        _trust.trusted_folder(folder / "one")


def test_a_file_is_no_folder(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(NotADirectoryError):
        _trust.trusted_folder(folder / "file")
    with pytest.raises(NotADirectoryError):
        _trust.trusted_folder(folder / "file" / "below", create=True)


def test_a_missing_folder(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _trust.trusted_folder(folder / "none")
    assert _trust.trusted_folder(folder / "a" / "b", create=True) == folder / "a" / "b"
    assert {(folder / name).stat().st_mode & 0o777 for name in ("a", "a/b")} == {0o700}


def test_a_folder_that_another_process_makes_first_is_checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.mkdir

    def overtaken(self: Path, mode: int = 0o777) -> None:
        real(self, 0o700)
        self.chmod(0o777)
        real(self, mode)

    monkeypatch.setattr(Path, "mkdir", overtaken)
    with pytest.raises(_trust.UntrustedError, match="mode 0777"):
        _trust.trusted_folder(folder / "new", create=True)


def test_a_dangling_link_is_made_whole(folder: Path) -> None:
    (folder / "link").symlink_to("target")
    assert _trust.trusted_folder(folder / "link" / "in", create=True) == folder / "target" / "in"


def test_an_open_folder_receives_nothing(folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(_trust.UntrustedError):
        _trust.trusted_folder(folder / "new", create=True)
    assert list(folder.iterdir()) == []


def test_a_file_of_ones_own(folder: Path) -> None:
    path = folder / "file"
    assert not _trust.is_trusted_file(path)
    path.touch()
    path.chmod(0o644)
    assert _trust.is_trusted_file(path)


def test_a_sticky_file_is_no_sticky_folder(folder: Path) -> None:
    path = folder / "file"
    path.touch()
    path.chmod(0o1666)
    with pytest.raises(_trust.UntrustedError, match="mode 1666"):
        _trust.is_trusted_file(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_owner_of_each_part_counts(folder: Path) -> None:
    deep = folder / "a" / "b"
    deep.mkdir(parents=True)
    os.chown(folder / "a", 65534, 65534)
    with pytest.raises(_trust.UntrustedError, match=f"{folder / 'a'} belongs to the user 65534"):
        _trust.trusted_folder(deep)
