"""Regular files are opened whoever else holds them; what only lies in their place is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from broker.regular import regular

HOLDER = """
import fcntl, os, signal, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
signal.sigwait([signal.SIGIO])
fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
"""


def test_a_file_under_a_lease_is_opened_when_it_is_given_back(tmp_path: Path) -> None:
    """A file server holds one for its client: whoever opens the file waits for that, no more."""
    path = tmp_path / "file"
    path.write_bytes(b"text")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        descriptor = regular(str(path), os.O_RDONLY | os.O_NOFOLLOW)
        assert os.read(descriptor, 10) == b"text"
        os.close(descriptor)
        assert holder.wait(20) == 0
    finally:
        holder.kill()
        holder.communicate()


def test_what_is_no_regular_file_is_neither_waited_for_nor_read(tmp_path: Path) -> None:
    """A pipe, a device, a folder, a link where none may be: each is refused at once."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "link"):
        with pytest.raises(OSError, match="not a regular file"):
            regular(str(path), os.O_RDONLY)
    with pytest.raises(OSError, match="symbolic links"):
        regular(str(tmp_path / "link"), os.O_RDONLY | os.O_NOFOLLOW)
