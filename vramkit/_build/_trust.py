"""Folders and files that no other user can have written to; what is loaded must stand in such.

A library runs its constructors when it is loaded, so whoever can write to it, or exchange a folder
above it, runs code as this user. The rule is OpenSSH's ``StrictModes`` for all folders up to the
root: the owner is this user or root, and neither group nor others may write. A sticky folder such
as /tmp, in which everybody may add entries but only the owner may rename one, may stand above.

The walk starts at the root. Once a folder has passed, no other user can exchange its entries, so
what is found out about an entry stays true: between the check and the use nothing can change.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 40
_PRIVATE_FOLDER = 0o700


class UntrustedError(Exception):
    """Another user can write to a path or could have; the text says where, and what to do."""


def trusted_folder(path: Path, *, create: bool = False) -> Path:
    """Return the folder's real path after a check of all folders and links on the way.

    Args:
        path: An absolute path.
        create: Make what is missing, for this user alone, whatever the umask.

    Raises:
        UntrustedError: Another user owns a part of it or may write to it.
        OSError: The folder is missing, is no folder, or cannot be made.
    """
    pending = list(reversed(path.parts[1:]))
    real = Path(path.anchor)
    links = 0
    _check(real, real.lstat())
    while pending:
        part = pending.pop()
        entry = real.parent if part == ".." else real / part
        status = _check(entry, _found_or_made(entry, create=create))
        if not stat.S_ISLNK(status.st_mode):
            real = entry
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, f"more than {_MOST_LINKS} symbolic links", str(path))
        target = entry.readlink()
        pending += reversed(target.parts)
        if target.is_absolute():
            real = Path(pending.pop())
    status = real.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(real))
    if status.st_mode & _OTHERS_WRITE:
        raise UntrustedError(_open_to_others(real, status))
    return real


def is_trusted_file(path: Path) -> bool:
    """Tell whether a file in a trusted folder may be loaded; False where there is none.

    Args:
        path: A file whose folder has passed :func:`trusted_folder`.

    Raises:
        UntrustedError: It is no regular file, or another user owns it or may write to it.
        OSError: It cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as err:
        if err.errno == errno.ELOOP:
            raise UntrustedError(f"{path} is a symbolic link; remove it") from err
        raise
    try:
        status = os.fstat(handle)
    finally:
        os.close(handle)
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedError(f"{path} is no regular file; remove it")
    _check(path, status)
    return True


def open_lock(path: Path) -> int:
    """Open a lock file, made for this user alone, and return its descriptor.

    Its content stays and no symbolic link is followed. Nobody else can open it, and so hold its
    lock for ever.

    Raises:
        OSError: It cannot be made or opened, for instance because it is a link (ELOOP).
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(path, flags, 0o600)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file; remove it", str(path))
        if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != 0o600:
            os.fchmod(handle, 0o600)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _found_or_made(entry: Path, *, create: bool) -> os.stat_result:
    try:
        return entry.lstat()
    except FileNotFoundError:
        if not create:
            raise
    # Another process may be quicker: then what it has made is checked.
    with suppress(FileExistsError):
        entry.mkdir(_PRIVATE_FOLDER)
        entry.chmod(_PRIVATE_FOLDER)
    return entry.lstat()


def _check(path: Path, status: os.stat_result) -> os.stat_result:
    if status.st_uid not in (0, os.geteuid()):
        raise UntrustedError(
            f"{path} belongs to the user {status.st_uid}, not to you ({os.geteuid()}) or root; "
            "remove it or choose another folder"
        )
    # A link's mode says nothing; who may exchange a sticky folder's entry is the entry's owner.
    excused = stat.S_ISLNK(status.st_mode) or (
        stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    )
    if status.st_mode & _OTHERS_WRITE and not excused:
        raise UntrustedError(_open_to_others(path, status))
    return status


def _open_to_others(path: Path, status: os.stat_result) -> str:
    return (
        f"other users may write to {path} (mode {stat.S_IMODE(status.st_mode):04o}); "
        f"run: chmod go-w {path}"
    )
