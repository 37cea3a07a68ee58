"""Turn an error of the operating system into a sentence with place and advice, where no other module did."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from index.places.disk import NO_TMPDIR, TMPDIR

_OTHER_PLACE = "Name another place, or change the permissions of this one"
ADVICE = {
    errno.ENOSPC: "Free some space on that disk, then repeat the command; a run continues with --resume",
    errno.EDQUOT: "Free some of your quota on that disk, then repeat the command; a run continues with --resume",
    errno.EFBIG: "Raise the limit (ulimit -f), or name a place on another file system",
    errno.EACCES: _OTHER_PLACE,
    errno.EPERM: _OTHER_PLACE,
    errno.EROFS: "Name a place on a disk that can be written to",
    errno.EMFILE: "Raise the limit (ulimit -n 4096), then repeat the command",
    errno.ENFILE: "Close other programs, then repeat the command",
    errno.ENAMETOOLONG: "Use a shorter name",
    errno.ENOENT: "Name a file or folder that exists",
    errno.ENOTDIR: "A file stands where a folder is needed: name another path",
    errno.EISDIR: "A folder stands where a file is needed: name a file",
    errno.EEXIST: "Something else stands at that path: name another",
    errno.ENOTEMPTY: "The folder is not empty: name another",
    errno.ELOOP: "The symbolic links go round in a circle: name the file itself",
    errno.EINVAL: "Name another path: this one is not valid here",
    errno.EIO: "The storage failed: look at the disk or the network mount, then repeat the command",
    errno.ESTALE: "The network mount was lost: mount it again, then repeat the command",
    errno.ENOTCONN: "The network mount was lost: mount it again, then repeat the command",
    errno.EPIPE: "A program or connection that was written to has ended: repeat the command; a run continues with --resume",
    errno.ETIMEDOUT: "The storage or network did not answer: look at it, then repeat the command",
}
MEMORY = "Close other programs, lower workers or generation.rows, or draw smaller pictures (model.size)"


def explain(error: BaseException) -> tuple[str, str] | None:
    """The failure and the advice, or None for an error that only a bug in Clearance explains.

    Where a library wrapped the operating system's refusal in an exception of its own, the one inside counts.
    """
    for cause in _chain(error):
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return f"out of memory{f' ({cause})' if str(cause) else ''}", MEMORY
        if isinstance(cause, FileNotFoundError) and NO_TMPDIR in str(cause):
            return str(cause.strerror), TMPDIR
        if isinstance(cause, OSError) and cause.errno is not None:
            names = [os.fsdecode(name) for name in (cause.filename, cause.filename2) if isinstance(name, str | bytes)]
            place = f"{' → '.join(names)}: " if names else ""
            return f"{place}{cause.strerror or os.strerror(cause.errno)}", ADVICE.get(
                cause.errno, "Look at that path, then repeat the command"
            )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__
