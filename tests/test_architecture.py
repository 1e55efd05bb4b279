"""The house keeps its own rules: who imports whom, what stays pure, how large things may be.

Everything here reads source files; nothing is run but two fresh interpreters that tell what they
have loaded. A rule that nobody runs is not a rule.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = ("schemas", "broker", "sandbox_worker")
MAY_IMPORT: Final = {
    "schemas": {"schemas"},
    "broker": {"schemas", "broker"},
    "sandbox_worker": {"schemas", "sandbox_worker"},
}
IMPURE: Final = {
    "zmq", "os", "socket", "time", "random", "subprocess", "threading", "asyncio", "secrets",
    "structlog", "select", "signal", "multiprocessing", "tempfile", "shutil", "pathlib", "ctypes",
    "logging", "nacl.utils",
}
PURE: Final = (
    "schemas/**/*.py",
    *(
        f"broker/{name}.py"
        for name in (
            "core", "lifecycle", "effects", "inventory", "policy", "state", "invocations",
            "supervision", "administration", "arrivals", "trusting", "shell",
            "client_keys", "folded", "handshakes",
        )
    ),
    "broker/orchestrator/**/*.py",
    "broker/trust/**/*.py",
)
WITH_CTYPES: Final = {"sandbox_worker/jail/linux.py", "broker/seal.py", "broker/transport.py"}
LINES_MAX: Final = 500
TABLE_LINES_MAX: Final = 800
DECLARED_TABLES: Final = {
    "schemas/messages.py", "schemas/events.py", "schemas/refusal_pages.py",
}
STANDALONE_LINES_MAX: Final = 560
STANDALONE: Final = {"scripts/verify_ledger.py"}
COLUMNS_MAX: Final = 100
FUNCTION_LINES_MAX: Final = 70

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(path: Path) -> Iterator[str]:
    """Name every module that a file imports, also by `importlib` and `__import__`."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            argument = node.args[0] if node.args else None
            yield str(argument.value) if isinstance(argument, ast.Constant) else "?"


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, Function):
            yield node


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package: str) -> None:
    """`schemas` imports neither neighbour, and broker and worker never import each other."""
    foreign = set(PACKAGES) - MAY_IMPORT[package]
    wrong = [
        f"{_name(path)} imports {module}"
        for path in _files(package)
        for module in _imports(path)
        if module.partition(".")[0] in foreign
    ]

    assert not wrong, "\n".join(wrong)


def test_nothing_imports_by_a_name_made_at_run_time() -> None:
    """Dynamic imports name a constant, so the walls between packages can be checked at all."""
    # The zygote imports the modules that an operator approved, by the names in the manifest.
    exempt = {"sandbox_worker/zygote.py", "sandbox_worker/modules.py", "sandbox_worker/forker.py"}
    wrong = [
        _name(path)
        for path in _files(*PACKAGES)
        if "?" in set(_imports(path)) and _name(path) not in exempt
    ]

    assert not wrong, "\n".join(wrong)


def test_pure_files_import_nothing_that_acts() -> None:
    """Clocks, chance, sockets, files and processes are out of reach of what must be replayable."""
    files = [path for pattern in PURE for path in sorted(ROOT.glob(pattern))]
    wrong = [
        f"{_name(path)} imports {module}"
        for path in files
        for module in _imports(path)
        if module in IMPURE or module.partition(".")[0] in IMPURE
    ]

    assert len(files) > 20
    assert not wrong, "\n".join(wrong)


def test_kernel_calls_are_made_in_three_places() -> None:
    """`ctypes` is in the worker's jail, the broker's seal and the seeding of libc's `rand`."""
    found = {
        _name(path)
        for path in _files(*PACKAGES)
        if any(module.partition(".")[0] in {"ctypes", "_ctypes", "cffi"} for module in
               _imports(path))
    }

    assert found <= WITH_CTYPES


def test_there_is_no_mode_without_a_sandbox() -> None:
    """No name in the code offers to skip the sandbox, the signature or authentication."""
    word = re.compile(
        r"\b(skip|disable|no|without|insecure|unsafe|allow)_"
        r"(sandbox|jail|seccomp|landlock|signature|signatures|curve|auth|verify)\b"
        r"|\bin_process\b|\bmode_a\b", re.IGNORECASE,
    )
    wrong = [
        f"{_name(path)}: {found[0]}"
        for path in _files(*PACKAGES)
        for found in [word.search(path.read_text("utf-8"))]
        if found
    ]

    assert not wrong, "\n".join(wrong)


def _source_files() -> list[Path]:
    files = _files(*PACKAGES, "scripts", "tests", "examples")
    scripts = (path for path in (ROOT / "scripts").glob("*") if path.is_file() and not path.suffix)
    return files + sorted(scripts)


def test_files_fit_on_a_readers_desk() -> None:
    """No file has more than 500 lines; declared tables may have 800, a verifier alone 560."""
    wrong = []
    for path in _source_files():
        lines = len(path.read_text("utf-8").splitlines())
        limit = TABLE_LINES_MAX if _name(path) in DECLARED_TABLES else LINES_MAX
        limit = STANDALONE_LINES_MAX if _name(path) in STANDALONE else limit
        if lines > limit:
            wrong.append(f"{_name(path)}: {lines} lines, allowed are {limit}")

    assert not wrong, "\n".join(wrong)


def test_lines_fit_on_a_readers_screen() -> None:
    """No line has more than 100 characters."""
    wrong = [
        f"{_name(path)}:{number}"
        for path in _source_files()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if len(re.sub(r"  # (noqa|type: ignore).*", "", line)) > COLUMNS_MAX
    ]

    assert not wrong, "\n".join(wrong)


def test_functions_fit_on_one_page() -> None:
    """No function has more than 70 lines."""
    wrong = [
        f"{_name(path)}: {function.name} has {length} lines"
        for path in _files(*PACKAGES, "scripts", "tests", "examples")
        for function in _functions(path)
        for length in [(function.end_lineno or 0) - function.lineno + 1]
        if length > FUNCTION_LINES_MAX
    ]

    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_is_for() -> None:
    """Each module begins with a docstring of at least one sentence."""
    wrong = [
        _name(path)
        for path in _files(*PACKAGES, "scripts", "tests", "examples")
        if len((ast.get_docstring(_tree(path)) or "").split()) < 5
        and not (path.name == "__init__.py" and path.is_relative_to(ROOT / "tests"))
    ]

    assert not wrong, "\n".join(wrong)


def test_init_files_hold_nothing_heavy() -> None:
    """An `__init__.py` is a docstring, imports of its own package or `schemas`, and `__all__`."""
    wrong = []
    for path in _files(*PACKAGES):
        if path.name != "__init__.py":
            continue
        own = path.relative_to(ROOT).parts[0]
        rest = _tree(path).body[1:]
        names = [
            node for node in rest
            if isinstance(node, ast.Assign | ast.AnnAssign)
            and "__all__" in ast.unparse(node).partition("=")[0]
        ]
        imports = [
            node for node in rest
            if isinstance(node, ast.ImportFrom)
            and (node.module or "").partition(".")[0] in {own, "schemas", "__future__"}
        ]
        if len(names) != 1 or len(rest) != len(names) + len(imports):
            wrong.append(_name(path))

    assert not wrong, "\n".join(wrong)


def _is_public(function: Function) -> bool:
    return not function.name.startswith("_") or function.name == "__init__"


def test_no_any_in_public_signatures() -> None:
    """Nothing public takes or gives an untyped value (INV-PNP-04)."""
    wrong = []
    for path in _files(*PACKAGES):
        for function in _functions(path):
            arguments = function.args
            every = [
                *arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs,
                *(a for a in (arguments.vararg, arguments.kwarg) if a),
            ]
            annotations = [*(a.annotation for a in every), function.returns]
            named = {
                getattr(node, "id", getattr(node, "attr", ""))
                for annotation in annotations if annotation
                for node in ast.walk(annotation)
            }
            if _is_public(function) and "Any" in named:
                wrong.append(f"{_name(path)}: {function.name}")

    assert not wrong, "\n".join(wrong)


def test_nothing_swallows_every_error() -> None:
    """No bare `except` and no `except Exception` that goes on as if nothing had happened."""
    wrong = []
    for path in _files(*PACKAGES, "scripts"):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = "" if node.type is None else ast.unparse(node.type)
                broad = re.search(r"\b(Base)?Exception\b", caught) or node.type is None
                if broad and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                    wrong.append(f"{_name(path)}:{node.lineno}")
            elif isinstance(node, ast.Call) and _called(node) == "suppress":
                shown = ast.unparse(node)
                if re.search(r"\b(Base)?Exception\b", shown):
                    wrong.append(f"{_name(path)}:{node.lineno}")
    # They run an author's code and answer with what it raised: two in the call process, which
    # reports it and dies, one on the author's own machine.
    places = ("call.py", "method.py", "sdk/describe.py")
    expected = {f"sandbox_worker/{place}" for place in places}
    assert {place.partition(":")[0] for place in wrong} <= expected, "\n".join(wrong)


def _tests() -> Iterator[tuple[Path, Function]]:
    for path in _files("tests"):
        for function in _functions(path):
            if function.name.startswith("test_"):
                yield path, function


def test_every_test_says_what_is_true() -> None:
    """Each test's docstring is the sentence that holds if the test passes."""
    wrong = [
        f"{_name(path)}: {function.name}"
        for path, function in _tests()
        if len((ast.get_docstring(function) or "").split()) < 4
    ]

    assert not wrong, "\n".join(wrong)


def test_tests_neither_sleep_nor_mock() -> None:
    """A test waits for a condition and meets the real thing."""
    wrong = []
    for path in _files("tests"):
        # A sleep in a lambda is an attempt that the sandbox must refuse.
        tried = {
            id(inner) for node in ast.walk(_tree(path)) if isinstance(node, ast.Lambda)
            for inner in ast.walk(node)
        }
        wrong += [
            f"{_name(path)}:{node.lineno} sleeps"
            for node in ast.walk(_tree(path))
            if isinstance(node, ast.Call) and id(node) not in tried
            and ast.unparse(node.func) in {"time.sleep", "asyncio.sleep", "sleep"}
        ]
        wrong += [
            f"{_name(path)} imports {module}"
            for module in _imports(path)
            if module.startswith(("unittest.mock", "mock", "pytest_mock"))
        ]

    assert not wrong, "\n".join(wrong)


def test_switched_off_checks_say_why() -> None:
    """Every silenced warning has its reason beside it, and nothing is left for later."""
    silenced = re.compile(r"#\s*(noqa|type:\s*ignore|pragma:\s*no cover)[A-Z0-9:, \[\]a-z-]*?"
                          r"(?P<reason>( - |  )\S+ \S+.*)?$")
    left = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b")
    wrong = []
    for path in _files(*PACKAGES, "scripts", "tests", "examples"):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            found = silenced.search(line)
            if found and path != Path(__file__) and not found["reason"]:
                wrong.append(f"{_name(path)}:{number}: {found[0]}")
            if left.search(line) or "pytest.mark." + "xfail" in line:
                wrong.append(f"{_name(path)}:{number}: unfinished")

    assert not wrong, "\n".join(wrong)


def _tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("this is not a checkout, so nothing says which files belong to it")
    paths = (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_the_project_speaks_of_itself_alone() -> None:
    """No file names a machine it was made on, nor how it was made."""
    halves = (
        ("/wo", "rk/"), ("/tmp", "/v3"), ("/ro", "ot/"), ("proto", "type"), ("Clau", "de"),
        ("Anthro", "pic"), ("Chat", "GPT"), ("co", "pilot"), ("language ", "model"),
        ("AI-gen", "erated"), ("as an ", "AI"), ("issue ", "#"), ("issues ", "show"),
    )
    words = ["".join(pair) for pair in halves]
    pattern = re.compile("|".join(map(re.escape, words)), re.IGNORECASE)
    wrong = []
    for path in _tracked():
        if path.suffix in {".png", ".omegaplugin"} or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
            found = pattern.search(line)
            if found:
                wrong.append(f"{_name(path)}:{number}: {found[0]}")

    assert not wrong, "\n".join(wrong)


def _loaded_by(code: str) -> set[str]:
    """Run code in a fresh interpreter and give the names of what it had loaded at its end."""
    tell = "lambda: print(chr(0), *sys.modules, file=sys.stderr)"
    told = f"import atexit, sys; atexit.register({tell})\n"
    run = subprocess.run(
        [sys.executable, "-c", told + code], capture_output=True, text=True, cwd=ROOT, timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return set(run.stderr.rpartition("\0")[2].split())


def test_importing_the_packages_is_light() -> None:
    """Importing the packages loads no transport, no logging and no schema compiler."""
    loaded = _loaded_by("import schemas, broker, sandbox_worker")

    assert loaded.isdisjoint({"zmq", "nacl", "structlog", "jsonschema_rs", "click", "rich"})


@pytest.mark.parametrize("module", ["broker.cli.main", "broker.authoring.main"])
def test_help_loads_no_gateway(module: str) -> None:
    """`--help` answers without loading sockets, logging, schemas or the trust code."""
    if not (ROOT / (module.replace(".", "/") + ".py")).exists():
        pytest.skip(f"{module} is not written yet")
    loaded = _loaded_by(
        f"import sys; sys.argv = ['command', '--help']; from {module} import main; main()"
    )

    assert loaded.isdisjoint({"zmq", "nacl", "structlog", "jsonschema_rs", "semver", "msgspec"})


def test_the_client_needs_three_packages() -> None:
    """The client library loads pyzmq, msgspec and pynacl and no other package."""
    if not (ROOT / "broker/client.py").exists():
        pytest.skip("the client is not written yet")
    loaded = {name.partition(".")[0] for name in _loaded_by("import broker.client")}

    assert loaded.isdisjoint(
        {"structlog", "jsonschema_rs", "click", "rich", "semver", "rfc8785", "fcntl"}
    )
