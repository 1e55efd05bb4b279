"""The table of system calls against the filters that are generated from it."""

from __future__ import annotations

import itertools

import pytest

from sandbox_worker.jail import linux, policy
from sandbox_worker.jail.bpf import ALLOW, KILL, Rule
from tests.sandbox_worker.jail.evaluator import evaluate

SEVERITY = {0x80000000: 2, 0x00050000: 1, 0x7FFF0000: 0}
GARBAGE = 0xDEADBEEF00000000
VALUES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 19, 20, 0x22, 0x21, 0x32, 0x01200011, 2**31, 2**32 - 1)
STRICT = [
    policy.strict_rules(clock=clock, random=random)
    for clock, random in itertools.product((False, True), repeat=2)
]
WITH_FILES = [
    policy.strict_rules(clock=False, random=False, descriptors=count)
    for count in (1, 2, policy.FILES_MAX)
]


def _probes() -> list[tuple[int, ...]]:
    """Argument registers that exercise every check: each value in each place, with garbage too."""
    probes: list[tuple[int, ...]] = [(0,) * 6, (GARBAGE,) * 6]
    for place, value in itertools.product(range(6), VALUES):
        for high in (0, GARBAGE):
            arguments = [0] * 6
            arguments[place] = value | high
            probes.append(tuple(arguments))
    for number, whence, high in itertools.product((3, 4, 5, 19, 20), (0, 2, 3), (0, GARBAGE)):
        probes.append((number | high, 0, whence | high, 0, 0, 0))
    probes.append((0, 4096, 3, 0x22, 2**64 - 1, 0))
    return probes


def _severity(action: int) -> int:
    return SEVERITY[action & 0xFFFF0000]


def _expected(rule: Rule, arguments: tuple[int, ...]) -> int:
    good = all(check.holds(arguments[check.argument]) for check in rule.checks)
    return rule.action if good else rule.otherwise


@pytest.mark.parametrize("rules", [*STRICT, *WITH_FILES, policy.base_rules()])
def test_every_number_does_what_the_table_says(rules: dict[str, Rule]) -> None:
    """Numbers 0 to 1023 through the real program, each with a set of argument registers."""
    program = policy.program(rules)
    names = {number: name for name, number in policy.numbers().items()}
    probes = _probes()

    for number in range(1024):
        rule = rules.get(names.get(number, ""), Rule(KILL))
        for arguments in probes if rule.checks else probes[:2]:
            assert _expected(rule, arguments) == evaluate(program, number, arguments), number


@pytest.mark.parametrize("rules", [*STRICT, *WITH_FILES])
def test_the_zygotes_filter_never_hardens_a_call_process(rules: dict[str, Rule]) -> None:
    """The kernel takes the most severe of both filters: base may never be the more severe one."""
    base, strict = policy.program(policy.base_rules()), policy.program(rules)
    checked = {policy.numbers()[name] for name in (*policy.CHECKED, *policy.CLOCK, *policy.RANDOM,
                                                   *policy.ZYGOTE)}  # fmt: skip
    probes = _probes()

    for number in range(1024):
        for arguments in probes if number in checked else probes[:2]:
            inner = evaluate(strict, number, arguments)
            outer = evaluate(base, number, arguments)
            assert _severity(outer) <= _severity(inner), number
            if _severity(inner) == 1 and _severity(outer) == 1:
                assert outer == inner, number


def test_capabilities_change_only_their_own_calls() -> None:
    """A grant of clock or random adds its rows and touches nothing else."""
    none, random, clock, both = STRICT

    assert {name for name in none if none[name] != clock[name]} == set(policy.CLOCK)
    assert {name for name in none if none[name] != random[name]} == set(policy.RANDOM)
    assert {name for name in none if none[name] != both[name]} == {*policy.CLOCK, *policy.RANDOM}
    assert all(set(none) == set(other) for other in STRICT)


@pytest.mark.parametrize("count", range(policy.FILES_MAX + 1))
def test_granted_descriptors_can_be_read_and_moved_in_and_nothing_else(count: int) -> None:
    """Exactly 4 to 3 + count may be read and sought in; 3 stays the job; no other call changes."""
    program = policy.call_filter(clock=False, random=False, descriptors=count)
    with_files = policy.strict_rules(clock=False, random=False, descriptors=count)
    known, none = policy.numbers(), STRICT[0]

    for name, allowed in (
        ("read", {3, *range(4, 4 + count)}), ("lseek", {*range(4, 4 + count)}), ("write", {3}),
        ("pread64", set()), ("fstat", set()), ("dup", set()), ("mmap", set()), ("fcntl", set()),
    ):  # fmt: skip
        for number in range(64):
            found = evaluate(program, known[name], (number | GARBAGE, 0, 0))
            assert (found == ALLOW) == (number in allowed), (name, number)
    changed = {name for name in none if none[name] != with_files[name]}
    assert changed == ({"read", "lseek"} if count else set())
    assert set(none) == set(with_files)


@pytest.mark.parametrize("count", [-1, policy.FILES_MAX + 1])
def test_there_is_no_filter_for_too_many_descriptors(count: int) -> None:
    """The zygote's filter would refuse what such a filter promised."""
    with pytest.raises(ValueError, match="descriptors"):
        policy.call_filter(clock=False, random=False, descriptors=count)


def test_a_name_stands_in_one_row() -> None:
    """No call is listed twice, where the later row would silently win."""
    rows = [
        *(name for names in policy.SOFT.values() for name in names.split()),
        *policy.ALWAYS.split(), *policy.ZERO.split(), *policy.CHECKED, *policy.CLOCK,
        *policy.RANDOM,
    ]  # fmt: skip

    assert sorted(rows) == sorted(set(rows))
    assert set(rows) | set(policy.ZYGOTE) <= set(policy.numbers())
    assert set(policy.SUPERVISOR_REFUSED.split()) <= set(policy.numbers())


def test_the_worst_of_the_kernel_is_killed_in_every_filter() -> None:
    """Calls that only an attack makes end the process, whatever was granted."""
    attacks = (
        "ptrace process_vm_readv process_vm_writev keyctl add_key request_key io_uring_setup "
        "userfaultfd bpf perf_event_open mount umount2 pivot_root unshare setns shmget shmat "
        "semget msgget mq_open personality modify_ldt splice name_to_handle_at open_by_handle_at "
        "init_module kexec_load landlock_create_ruleset pidfd_open pidfd_getfd process_madvise"
    )
    for name in attacks.split():
        for rules in STRICT:
            assert evaluate(policy.program(rules), policy.numbers()[name]) == KILL, name


def test_call_numbers_of_the_raw_layer_are_those_of_the_table() -> None:
    """`linux.py` spells its numbers out, because a zygote reads no table."""
    known = policy.numbers()
    constants = {
        name.lower(): value
        for name, value in vars(linux).items()
        if name.isupper() and not name.startswith(("PR_", "_")) and isinstance(value, int)
    }

    assert constants == {name: known[name] for name in constants}


def test_a_sealed_supervisor_may_start_threads_and_no_process() -> None:
    """CLONE_THREAD decides; clone3, whose flags no filter can see, does not exist."""
    program = policy.program(policy.supervisor_rules(), ALLOW)
    known = policy.numbers()

    assert evaluate(program, known["clone"], (0x3D0F00,)) == ALLOW
    assert evaluate(program, known["clone"], (0x1200011,)) == 0x00050001
    assert evaluate(program, known["clone3"]) == 0x00050026
    assert evaluate(program, known["execve"]) == 0x00050001
    assert evaluate(program, known["openat"]) == ALLOW
