"""The filters, told for a person: which call, which arguments, which action, and whose bytes.

    python -m sandbox_worker.listing

writes one JSON document: every program that a worker may install, with its digest as
`worker.attest` has it in the ledger, and the rules of each kind of process. `omega-gateway doctor
--filters` shows it. Rules: all of it comes from the table in `jail/policy.py`; nothing is put on.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import sys

from sandbox_worker.jail import policy
from sandbox_worker.jail.bpf import ALLOW, KILL, Check, Rule, disassemble

_NAMES = {
    0x20: "ld [{k}]", 0x05: "ja {true}", 0x15: "jeq {k:#x}, {true}, {false}",
    0x35: "jge {k:#x}, {true}, {false}", 0x45: "jset {k:#x}, {true}, {false}", 0x54: "and {k:#x}",
    0x06: "ret {action}",
}  # fmt: skip
_ACTIONS = {ALLOW: "allow", KILL: "kill", 0x00050000: "return 0"}
_PLAIN = "call process"
_SHOWN = [
    (True, False, 0), (False, True, 0),
    *((False, False, count) for count in range(1, policy.FILES_MAX + 1)),
]  # fmt: skip
"""Grants whose differences are told one by one; several together are the differences of each."""


def action_name(action: int) -> str:
    """An action in words: "allow", "kill", "return 0" or the errno that the caller gets."""
    return _ACTIONS.get(action) or errno.errorcode[action & 0xFFFF]


def programs() -> dict[str, bytes]:
    """Every program that a worker may install, by the name of its process and grants."""
    found = {
        "zygote": policy.base_filter(),
        "supervisor": policy.program(policy.supervisor_rules(), ALLOW),
        "supervisor, once connected": policy.program(policy.connected_rules(), ALLOW),
    }
    for clock, random in itertools.product((False, True), repeat=2):
        for count in range(policy.FILES_MAX + 1):
            name = _variant(clock=clock, random=random, descriptors=count)
            found[name] = policy.call_filter(clock=clock, random=random, descriptors=count)
    return found


def assembly(program: bytes) -> list[str]:
    """One line per instruction, with jumps as the number of the instruction they lead to."""
    lines = []
    for at, (code, true, false, constant) in enumerate(disassemble(program)):
        first = at + 1 + (constant if code == 0x05 else true)
        action = action_name(constant) if code == 0x06 else ""
        text = _NAMES[code].format(k=constant, true=first, false=at + 1 + false, action=action)
        lines.append(f"{at:3} {text}")
    return lines


def document() -> dict[str, object]:
    """Programs and rules as plain data; see `omega-gateway doctor --filters`."""
    strict = policy.strict_rules(clock=False, random=False)
    filters = [
        _filter("zygote", policy.base_rules(), "kill"),
        _filter(_PLAIN, strict, "kill"),
        _filter("supervisor", policy.supervisor_rules(), "allow"),
        _filter("supervisor, once connected", policy.connected_rules(), "as supervisor"),
    ]
    for clock, random, count in _SHOWN:
        rules = policy.strict_rules(clock=clock, random=random, descriptors=count)
        differing = {name: rule for name, rule in rules.items() if rule != strict[name]}
        name = _variant(clock=clock, random=random, descriptors=count)
        filters.append(_filter(name, differing, f"as {_PLAIN}"))
    return {
        "programs": [
            {
                "program": name,
                "instructions": len(program) // 8,
                "sha256": hashlib.sha256(program).hexdigest(),
            }
            for name, program in programs().items()
        ],
        "filters": filters,
    }


def _variant(*, clock: bool, random: bool, descriptors: int) -> str:
    grants = [
        *(["clock.read"] if clock else []),
        *(["random.read"] if random else []),
        *([f"{descriptors} descriptor{'s' * (descriptors > 1)}"] if descriptors else []),
    ]
    return f"{_PLAIN} with {', '.join(grants)}" if grants else _PLAIN


def _filter(name: str, rules: dict[str, Rule], default: str) -> dict[str, object]:
    known = policy.numbers()
    always = {"number": None, "arguments": "", "otherwise": ""}
    rows: list[dict[str, object]] = [
        {
            "number": known[call],
            "call": call,
            "arguments": " and ".join(map(_condition, rules[call].checks)),
            "action": action_name(rules[call].action),
            "otherwise": action_name(rules[call].otherwise) if rules[call].checks else "",
        }
        for call in sorted(rules, key=known.__getitem__)
    ]
    return {
        "filter": name,
        "rows": [
            *rows,
            {**always, "call": "any other", "action": default},
            {**always, "call": "any of another architecture or x32", "action": "kill"},
        ],
    }


def _condition(check: Check) -> str:
    conditions = []
    if check.one_of:
        conditions.append(f"is {_numbers(check.one_of)}")
    elif check.subset != 0xFFFFFFFF:
        conditions.append(f"has no bit but {check.subset:#x}")
    if check.contains:
        conditions.append(f"has {check.contains:#x}")
    return f"argument {check.argument} ({check.bits} bits) {' and '.join(conditions)}"


def _numbers(values: tuple[int, ...]) -> str:
    if len(values) > 2 and values == tuple(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return " or ".join(str(value) if value < 1024 else hex(value) for value in values)


if __name__ == "__main__":
    json.dump(document(), sys.stdout)
