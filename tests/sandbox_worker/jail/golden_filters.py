"""Make the golden files of the filters: their exact bytes, an instruction a line.

`python -m tests.sandbox_worker.jail.golden_filters --rewrite` writes them anew. A difference is a
change of what plugin code may ask the kernel for: read it before you commit it, and say why.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from sandbox_worker import listing

FOLDER = Path(__file__).parent / "golden"
WHOLE = (
    "zygote", "supervisor", "supervisor, once connected",
    "call process", "call process with clock.read", "call process with random.read",
    "call process with clock.read, random.read",
    "call process with 1 descriptor", "call process with 16 descriptors",
)  # fmt: skip
"""Programs that are kept whole; of the others the digest is kept."""


def files() -> dict[str, str]:
    """What each golden file must hold, by its name."""
    programs = listing.programs()
    found = {
        name.replace(",", "").replace(" ", "-") + ".txt": "".join(
            f"{program[at * 8 : at * 8 + 8].hex()} {line}\n"
            for at, line in enumerate(listing.assembly(program))
        )
        for name in WHOLE
        for program in [programs[name]]
    }
    found["digests.txt"] = "".join(
        f"{hashlib.sha256(program).hexdigest()} {len(program) // 8:3} {name}\n"
        for name, program in programs.items()
    )
    return found


def program_in(text: str) -> bytes:
    """The bytes of a program from the text of its golden file."""
    return b"".join(bytes.fromhex(line.split()[0]) for line in text.splitlines())


if __name__ == "__main__":
    assert sys.argv[1:] == ["--rewrite"], __doc__
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, "utf-8")
