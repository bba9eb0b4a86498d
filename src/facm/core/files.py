"""Files that are written completely or not at all, or in place but nowhere else than where their names are."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

UMASK = os.umask(0)  # it can only be read by setting it
os.umask(UMASK)

PARTIAL = ".partial"
"""How the names of half-written files end; they begin with a dot and the name of what they are to become."""


class TakenError(FileExistsError):
    """There is something at the path of a file that was to be new."""


@contextlib.contextmanager
def atomically(path: Path, new: bool = False) -> Iterator[Path]:
    """Write to the yielded path, a file of this process alone; afterwards ``path`` has its old or the complete new
    content, whatever happens. A link at ``path`` is replaced, not followed.

    new: ``path`` is never overwritten, whoever else writes it meanwhile. Raises TakenError where it is there.
    """
    if new and os.path.lexists(path):
        raise _taken(path)
    handle, name = tempfile.mkstemp(PARTIAL, f".{path.name[:40]}.", path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~UMASK)  # it was made for its owner alone
        sync(partial)
        if new:
            _put(partial, path)
        else:
            os.replace(partial, path)
        sync(path.parent)  # the rename itself must survive a power cut
    except BaseException:
        with contextlib.suppress(OSError):  # free the space on a full disk; the first error says more
            partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Fill the yielded folder, of this process alone; afterwards ``path`` is the complete folder or was never there.

    Raises TakenError where there is something at ``path``, before anything is written or after.
    """
    if os.path.lexists(path):
        raise _taken(path)
    partial = Path(tempfile.mkdtemp(PARTIAL, f".{path.name[:40]}.", path.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~UMASK)  # it was made for its owner alone
        for below in [*partial.rglob("*"), partial]:
            sync(below)
        try:
            os.rename(partial, path)  # fails where there is a file, or a folder with something in it
        except OSError as error:
            if os.path.lexists(path):
                raise _taken(path) from error
            raise
        sync(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # the first error says more
        raise


def _put(partial: Path, path: Path) -> None:
    """Give ``partial`` its name, unless that is taken."""
    try:
        try:
            os.link(partial, path)  # fails where the name is taken, as a rename does not
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            os.replace(partial, path)
        else:
            partial.unlink()
    except FileExistsError:
        raise _taken(path) from None


def _taken(path: Path) -> TakenError:
    return TakenError(errno.EEXIST, "exists and is not overwritten", str(path))


def sync(path: Path) -> None:
    """Wait until a file's content or a folder's entries are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def open_in_place(path: Path, flags: int) -> int:
    """A handle to a regular file that is not written whole, such as a log or a lock; made where there is none.

    flags: os.O_RDWR and the like. Raises ValueError naming ``path`` for a link, which could lead anywhere, and for
    anything else that is no regular file.
    """
    try:
        handle = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            what = "a symbolic link" if path.is_symlink() else "no regular file"
            raise ValueError(f"{path} is {what}, expected a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{path} is no regular file, expected one")
    return handle


def is_at(handle: int, path: Path) -> bool:
    """Whether ``path`` still is the open file: it may have been replaced, or removed, since it was opened."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False
