"""The filters as they are kept in golden files and told to people."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
from typing import Any

import pytest

from sandbox_worker import listing
from sandbox_worker.jail import policy
from sandbox_worker.jail.bpf import ALLOW, KILL, assemble
from tests.sandbox_worker.jail import golden_filters
from tests.sandbox_worker.jail.evaluator import evaluate, stacked

BASE = policy.base_filter()


def test_the_filters_are_the_golden_ones() -> None:
    """Not one byte differs from the files that were looked at and committed."""
    wanted = golden_filters.files()

    assert {path.name for path in golden_filters.FOLDER.iterdir()} == set(wanted)
    for name, text in wanted.items():
        kept = (golden_filters.FOLDER / name).read_text("utf-8")
        assert kept == text, f"{name}: python -m tests.sandbox_worker.jail.golden_filters --rewrite"


def test_golden_bytes_are_what_is_installed() -> None:
    """The first column of a golden file is the program itself, and its digest is in the list."""
    digests = (golden_filters.FOLDER / "digests.txt").read_text("utf-8")
    for name, program in (
        ("zygote", BASE),
        ("call-process", policy.call_filter(clock=False, random=False)),
        ("call-process-with-16-descriptors",
         policy.call_filter(clock=False, random=False, descriptors=16)),
    ):  # fmt: skip
        text = (golden_filters.FOLDER / f"{name}.txt").read_text("utf-8")

        assert golden_filters.program_in(text) == program
        assert hashlib.sha256(program).hexdigest() in digests


def test_a_table_in_another_order_gives_the_golden_bytes() -> None:
    """The bytes depend on the rules alone."""
    known = policy.numbers()
    rules = {known[name]: rule for name, rule in reversed(policy.base_rules().items())}

    assert assemble(rules, KILL) == BASE


def test_a_call_looks_at_few_instructions() -> None:
    """The tree is balanced: a search takes few turns, and then comes one call's own check.

    The longest check is that of a descriptor against seventeen numbers.
    """
    assert _longest_path(BASE) <= 35
    assert _longest_path(policy.call_filter(clock=False, random=False)) <= 16


def _longest_path(program: bytes) -> int:
    """Instructions on the longest way through; jumps only lead forward."""
    code = listing.disassemble(program)
    longest = [0] * len(code)
    for at in range(len(code) - 1, -1, -1):
        operation, true, false, constant = code[at]
        if operation == 0x06:
            following = [0]
        elif operation == 0x05:
            following = [longest[at + 1 + constant]]
        elif operation in (0x15, 0x35, 0x45):
            following = [longest[at + 1 + true], longest[at + 1 + false]]
        else:
            following = [longest[at + 1]]
        longest[at] = 1 + max(following)
    return longest[0]


@pytest.fixture(scope="module")
def told() -> Any:
    """The document that the command reads, from the process that it starts."""
    done = subprocess.run(
        [sys.executable, "-m", "sandbox_worker.listing"], capture_output=True, check=True,
        text=True,
    )  # fmt: skip
    return json.loads(done.stdout)


ACTIONS = {"allow": ALLOW, "kill": KILL, "return 0": 0x00050000}


def _action(name: str) -> int:
    return ACTIONS.get(name) or 0x00050000 | int(getattr(errno, name))


def test_each_row_tells_what_the_bytes_do(told: Any) -> None:
    """A row without conditions is the program's answer; one with them has both of its answers."""
    programs = {
        "zygote": [BASE],
        "call process": [BASE, policy.call_filter(clock=False, random=False)],
        "supervisor": [policy.program(policy.supervisor_rules(), ALLOW)],
    }
    for name, stack in programs.items():
        (rows,) = [one["rows"] for one in told["filters"] if one["filter"] == name]
        seen = {row["number"]: row for row in rows if row["number"] is not None}
        for number in range(1024):
            row = seen.get(number) or rows[-2]
            found = {stacked(stack, number, (value,) * 6) for value in (0, 3, 4, 2**31 + 7)}
            if row["arguments"]:
                assert found <= {_action(row["action"]), _action(row["otherwise"])}, row
            else:
                assert found == {_action(row["action"])}, row
        assert stacked(stack, 0, arch=0x40000003) == _action(rows[-1]["action"]) == KILL


def test_grants_are_told_by_what_they_change(told: Any) -> None:
    """Each variant lists the calls that it changes and refers to the plain one for the rest."""
    changed = {
        one["filter"]: [row["call"] for row in one["rows"][:-2]] for one in told["filters"]
    }

    assert set(changed["call process with clock.read"]) == set(policy.CLOCK)
    assert changed["call process with random.read"] == ["getrandom"]
    for count in range(1, policy.FILES_MAX + 1):
        name = f"call process with {count} descriptor{'s' * (count > 1)}"
        assert changed[name] == ["read", "lseek"]
    assert {one["program"] for one in told["programs"]} == set(listing.programs())


def test_conditions_are_told_in_words(told: Any) -> None:
    """Position, width and values of an argument can be read off a row."""
    rows = {
        (one["filter"], row["call"]): row["arguments"]
        for one in told["filters"]
        for row in one["rows"]
    }

    assert rows["call process", "read"] == "argument 0 (32 bits) is 3"
    assert rows["call process", "mmap"] == (
        "argument 2 (64 bits) has no bit but 0x3 and argument 3 (64 bits) has no bit but 0x24032 "
        "and has 0x22"
    )
    assert rows["zygote", "kill"] == "argument 1 (32 bits) is 0 or 9"
    assert rows["zygote", "clone"] == "argument 0 (64 bits) is 0x1200011"
    assert rows["zygote", "dup3"] == "argument 1 (32 bits) is 3 to 19"


def test_assembly_names_where_a_jump_leads() -> None:
    """A line per instruction: following them by their text gives the program's answer."""
    lines = listing.assembly(BASE)
    assert lines[0] == "  0 ld [4]"
    assert lines[2] == "  2 ret kill"
    for number in (0, 3, 56, 101, 257):
        at, value = 3, number
        while True:
            _, operation, *words = lines[at].replace(",", "").split()
            if operation == "ret":
                break
            if operation == "jge":
                at = int(words[1]) if value >= int(words[0], 16) else int(words[2])
            elif operation == "jeq":
                at = int(words[1]) if value == int(words[0], 16) else int(words[2])
            elif operation == "ja":
                at = int(words[0])
            else:
                # Arguments are all zero here, and so is what is loaded of them.
                at, value = at + 1, number if words == ["[0]"] else 0
        assert words == [listing.action_name(evaluate(BASE, number))]
