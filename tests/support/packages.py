"""Folders of approved packages for tests: small ones written here, and numpy as it is installed.

A worker of root lets its zygote run as a user of its own, who must be able to go through the
folders above, so these lie in a folder of their own beneath the temporary one, with mode 0755.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from schemas.packages import LOCK_FILE, PackageFolder, write_lock


def lock(folder: Path) -> PackageFolder:
    """Lock what lies in a folder now, as an operator does who approves it."""
    for directory, _, names in os.walk(folder):
        os.chmod(directory, 0o755)
        for name in names:
            os.chmod(os.path.join(directory, name), 0o644)
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK_FILE
    }
    data = write_lock(files)
    (folder / LOCK_FILE).write_bytes(data)
    (folder / LOCK_FILE).chmod(0o644)
    return PackageFolder(str(folder), hashlib.sha256(data).hexdigest())


@contextlib.contextmanager
def package_folder(files: dict[str, str]) -> Iterator[Path]:
    """A folder with these files, by path relative to it; `lock` has not been called."""
    with tempfile.TemporaryDirectory(prefix="og-packages-") as name:
        folder = Path(name)
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        yield folder


@contextlib.contextmanager
def numpy_folder() -> Iterator[PackageFolder]:
    """A locked folder with the numpy that the tests' environment has, without its own tests."""
    found = importlib.util.find_spec("numpy")
    assert found is not None
    assert found.origin is not None
    installed = Path(found.origin).parent
    with package_folder({}) as folder:
        for name in ("numpy", "numpy.libs"):
            shutil.copytree(
                installed.parent / name, folder / name,
                ignore=shutil.ignore_patterns("tests", "*.pyi", "f2py", "include"),
                copy_function=shutil.copyfile,
            )
        yield lock(folder)
