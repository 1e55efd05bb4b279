"""What fuzzing found worth keeping: a line of hex for each input, a file for each target."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).with_name("corpus")


def read(name: str) -> list[bytes]:
    """Give a target's kept inputs."""
    path = FOLDER / f"{name}.hex"
    return [bytes.fromhex(line) for line in path.read_text().split()] if path.exists() else []


def write(name: str, inputs: list[bytes]) -> None:
    """Keep these inputs of a target, shortest first."""
    FOLDER.mkdir(exist_ok=True)
    ordered = sorted(set(inputs), key=lambda data: (len(data), data))
    (FOLDER / f"{name}.hex").write_text("".join(f"{data.hex()}\n" for data in ordered))
