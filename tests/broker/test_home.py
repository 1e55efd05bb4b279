"""Homes: made whole or not at all, and refused with one sentence for whatever is wrong in them."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker import home as homes
from broker.client_profile import read_profile
from broker.home import Home, HomeRefused, create_home, find_home, load_home, prepare_run_directory
from broker.keys import new_signing_pair
from broker.trust.roots import sign_root
from schemas.names import Domain
from schemas.refusals import RefusalCode
from schemas.trust import Publisher, TrustRoot


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment whose sockets lie in a folder of this test."""
    folder = Path(f"/tmp/omega-test-{os.getpid()}-{id(tmp_path_factory)}")
    folder.mkdir(mode=0o700)
    yield {"XDG_RUNTIME_DIR": str(folder)}
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.fixture
def home(tmp_path: Path, environment: dict[str, str]) -> Home:
    """A development home."""
    return create_home(str(tmp_path / "home"), "development", None, environment=environment)


def production_root() -> bytes:
    """A trust root of the production domain, as an operator would bring it."""
    root, publisher = new_signing_pair(), new_signing_pair()
    return sign_root(
        TrustRoot(
            format="omega-trust/1", domain="production", version=3, roots=(root.public,),
            root_threshold=1,
            publishers={"acme": Publisher(keys=(publisher.public,), threshold=1, plugins=("a-*",))},
        ),
        [bytes.fromhex(root.secret)],
    )  # fmt: skip


def entries(path: str) -> set[str]:
    """Every file and folder of a home, relative."""
    return {str(one.relative_to(path)) for one in Path(path).rglob("*")}


def test_development_home_is_whole(home: Home) -> None:
    """It has every folder, key, profile and the trust root, and loads again as it was made."""
    again = load_home(home.path, environment={})
    assert again == home
    assert home.config.domain == "development"
    assert set(homes.FOLDERS) < entries(home.path)
    assert home.trust.trust.publishers.keys() == {"development"}
    publisher = Path(home.path, homes.PUBLISHER_KEY).read_text().strip()
    assert len(bytes.fromhex(publisher)) == 32
    assert {key.role for key in home.clients.values()} == {"omega", "operator", "auditor"}
    for role in ("omega", "operator", "auditor"):
        profile = read_profile(os.path.join(home.path, "profiles", role))
        assert profile.settings.role == role
        assert profile.settings.log_id == home.config.log_id
        assert profile.settings.verifier_key == home.verifier_key
        omega = role == "omega"
        assert profile.settings.endpoint == (home.omega_endpoint if omega else home.admin_endpoint)
        server = home.keys.front_omega if omega else home.keys.front_admin
        assert profile.settings.server_key == server.public
        assert profile.pair.public in {key.public_key for key in home.clients.values()}


def test_home_is_its_owners_alone(home: Home) -> None:
    """No file or folder of a home has a bit for group or others."""
    for path in [Path(home.path), *Path(home.path).rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_production_home_holds_no_root_secret(tmp_path: Path, environment: dict[str, str]) -> None:
    """Its trust root is the one brought, and there is no publisher, root key or profile."""
    envelope = production_root()
    path = str(tmp_path / "home")
    home = create_home(path, "production", envelope, environment=environment)
    assert home.trust.trust.version == 3
    secrets = {name for name in entries(path) if name.endswith(".key_secret")}
    names = ("front.omega", "front.admin", "ledger", "determinism")
    assert secrets == {f"keys/{name}.key_secret" for name in names}
    assert home.clients == {}
    assert not Path(path, "profiles").exists()


@pytest.mark.parametrize(
    ("domain", "envelope", "code", "words"),
    [
        ("production", None, RefusalCode.TRUST_INVALID, "--trust-root"),
        ("development", b"{}", RefusalCode.TRUST_INVALID, "makes its own"),
        ("production", b"{}", RefusalCode.TRUST_INVALID, "home"),
        ("production", b"\xff", RefusalCode.TRUST_INVALID, "home"),
    ],
)
def test_wrong_trust_root_makes_no_home(
    tmp_path: Path, environment: dict[str, str], domain: Domain, envelope: bytes | None,
    code: RefusalCode, words: str,
) -> None:  # fmt: skip
    """Without the right trust root nothing is made at all."""
    path = tmp_path / "home"
    with pytest.raises(HomeRefused, match=words) as refused:
        create_home(str(path), domain, envelope, environment=environment)
    assert refused.value.code == code
    assert not path.exists()


def test_development_root_is_refused_in_production(
    home: Home, tmp_path: Path, environment: dict[str, str]
) -> None:
    """A root of the other domain is another document, whatever its signatures."""
    envelope = Path(home.path, "trust/root.dsse.json").read_bytes()
    with pytest.raises(HomeRefused) as refused:
        create_home(str(tmp_path / "two"), "production", envelope, environment=environment)
    assert refused.value.code == RefusalCode.DOMAIN_MISMATCH


def test_home_is_not_made_over_something(tmp_path: Path, environment: dict[str, str]) -> None:
    """A folder with content, or open to others, is refused and left as it was."""
    full, open_folder = tmp_path / "full", tmp_path / "open"
    full.mkdir(mode=0o700)
    (full / "precious").write_text("content")
    open_folder.mkdir()
    open_folder.chmod(0o755)
    for path in (full, open_folder):
        with pytest.raises(HomeRefused, match=str(path)):
            create_home(str(path), "development", None, environment=environment)
    assert entries(str(full)) == {"precious"}
    assert entries(str(open_folder)) == set()


def test_home_is_made_in_an_empty_folder(tmp_path: Path, environment: dict[str, str]) -> None:
    """An empty private folder, such as a temporary one or a volume, may become a home."""
    (tmp_path / "home").mkdir(mode=0o700)
    assert create_home(str(tmp_path / "home"), "development", None, environment=environment)


def test_failure_in_the_middle_leaves_no_half_home(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """When the volume refuses a file in the middle, the error says so and nothing stays behind."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The keys fit into a hundred bytes each, the trust root does not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(HomeRefused, match="File too large"):
            create_home(str(tmp_path / "home"), "development", None, environment=environment)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert entries(str(tmp_path / "home")) == set()
    assert create_home(str(tmp_path / "home"), "development", None, environment=environment)


def change(path: Path, mode: int | None = None, text: str | None = None) -> None:
    """Change a file's text or mode."""
    if text is not None:
        path.write_text(text)
    if mode is not None:
        path.chmod(mode)


def replace_in_config(old: str, new: str) -> Callable[[Path], None]:
    """A fault: one text of gateway.toml is another."""

    def apply(path: Path) -> None:
        config = path / "gateway.toml"
        text = config.read_text()
        assert old in text
        config.write_text(text.replace(old, new))

    return apply


def append_to(name: str, text: str) -> Callable[[Path], None]:
    """A fault: a text is appended to a file."""
    return lambda path: change(path / name, text=(path / name).read_text() + text)


def other_root(path: Path) -> None:
    """A fault: a named root lies behind a link to a folder that may be named."""
    (path.parent / "corpus").mkdir()
    (path.parent / "link").symlink_to("corpus")
    append_to("policy.toml", f'[roots]\ncorpus = "{path.parent}/link"\n')(path)


def linked_root(path: Path) -> None:
    """A fault: a named root is a link to a folder of the home."""
    link = path.parent / "harmless"
    link.symlink_to(path / "keys")
    append_to("policy.toml", f'[roots]\nkeys = "{link}"\n')(path)


def remove(name: str) -> Callable[[Path], None]:
    """A fault: a file or empty folder is missing."""
    return lambda path: (path / name).rmdir() if (path / name).is_dir() else (path / name).unlink()


FAULTS: dict[str, tuple[Callable[[Path], None], RefusalCode, list[str]]] = {
    # What is wrong: how, the code, and words that the sentence must hold.
    "no configuration": (
        remove("gateway.toml"), RefusalCode.HOME_INVALID, ["is no home", "omega-gateway init"],
    ),
    "an unknown line": (
        append_to("gateway.toml", "[limits]\nin_flight = 3\n"),
        RefusalCode.CONFIG_INVALID, ["gateway.toml: $.limits.in_flight: there is no such line"],
    ),
    "a number out of range": (
        append_to("gateway.toml", "[limits]\nin_flight_max = 0\n"),
        RefusalCode.CONFIG_INVALID, ["gateway.toml: $.limits.in_flight_max: Expected `int` >= 1"],
    ),
    "a text for a number": (
        append_to("gateway.toml", '[times]\ndrain_ms = "10"\n'),
        RefusalCode.CONFIG_INVALID, ["gateway.toml: $.times.drain_ms: Expected `int`"],
    ),
    "a missing line": (
        replace_in_config('domain = "development"', ""),
        RefusalCode.CONFIG_INVALID, ["gateway.toml: $.domain: is missing"],
    ),
    "a line that is no TOML": (
        append_to("gateway.toml", "[limits\n"),
        RefusalCode.CONFIG_INVALID, ["gateway.toml: not TOML", "line 11, column 8"],
    ),
    "a file that ends early": (
        append_to("gateway.toml", "[workers]\nexternal = ["),
        RefusalCode.CONFIG_INVALID, ["gateway.toml: not TOML", "line 12, column 13"],
    ),
    "bytes that are no text": (
        lambda path: (path / "gateway.toml").write_bytes(b"a = 1\nb = '\xff'\n"),
        RefusalCode.CONFIG_INVALID, ["gateway.toml: line 2 is not UTF-8"],
    ),
    "a configuration that is a link": (
        lambda path: ((path / "gateway.toml").rename(path / "other"),
                      (path / "gateway.toml").symlink_to(path / "other"), None)[-1],
        RefusalCode.CONFIG_INVALID, ["gateway.toml: cannot be read"],
    ),
    "a log of the other domain": (
        replace_in_config("omega-gateway/development/", "omega-gateway/production/"),
        RefusalCode.CONFIG_INVALID, ["$.log_id", "omega-gateway/development/"],
    ),
    "a domain changed by hand": (
        lambda path: [replace_in_config(old, new)(path) for old, new in (
            ('"development"', '"production"'), ("/development/", "/production/"))] and None,
        RefusalCode.DOMAIN_MISMATCH, ["trust/root.dsse.json"],
    ),
    "an endpoint that needs a name server": (
        replace_in_config('endpoint = "ipc://', 'endpoint = "tcp://example.org:5555" # "'),
        RefusalCode.CONFIG_INVALID, ["$.omega.endpoint", "numeric"],
    ),
    "an endpoint in no folder": (
        replace_in_config('endpoint = "ipc:///', 'endpoint = "ipc://@'),
        RefusalCode.CONFIG_INVALID, ["$.omega.endpoint", "absolute"],
    ),
    "a relative anchor": (
        append_to("gateway.toml", '[ledger]\nanchor = "anchor"\n'),
        RefusalCode.CONFIG_INVALID, ["$.ledger.anchor", "absolute"],
    ),
    "an anchor that is missing": (
        append_to("gateway.toml", '[ledger]\nanchor = "/nonexistent/anchor"\n'),
        RefusalCode.HOME_INVALID, ["/nonexistent/anchor", "No such file"],
    ),
    "back-off the wrong way round": (
        append_to("gateway.toml", "[times]\nbackoff_ms_min = 9\nbackoff_ms_max = 8\n"),
        RefusalCode.CONFIG_INVALID, ["$.times.backoff_ms_min"],
    ),
    "a wrong line of policy": (
        append_to("policy.toml", '[grants."*"]\ncapabilities = ["fly"]\n'),
        RefusalCode.CONFIG_INVALID, ["policy.toml: $.grants", "capabilities[0]", '"fly"'],
    ),
    "a root above the home": (
        lambda path: append_to("policy.toml", f'[roots]\nall = "{path.parent}"\n')(path),
        RefusalCode.CONFIG_INVALID, ["policy.toml: $.roots.all", "apart from it"],
    ),
    "a root behind a link": (
        other_root, RefusalCode.CONFIG_INVALID, ["$.roots.corpus", "leads through a link"],
    ),
    "a root in the home, by a link": (
        linked_root, RefusalCode.CONFIG_INVALID, ["policy.toml: $.roots.keys"],
    ),
    "no policy": (
        remove("policy.toml"), RefusalCode.CONFIG_INVALID, ["policy.toml: cannot be read"],
    ),
    "no trust root": (
        remove("trust/root.dsse.json"), RefusalCode.HOME_INVALID, ["trust/root.dsse.json"],
    ),
    "a damaged trust root": (
        lambda path: change(path / "trust/root.dsse.json", text="{}"),
        RefusalCode.TRUST_INVALID, ["trust/root.dsse.json"],
    ),
    "a missing folder": (remove("artifacts"), RefusalCode.HOME_INVALID, ["artifacts", "No such"]),
    "a folder open to others": (
        lambda path: change(path / "registry", mode=0o755),
        RefusalCode.HOME_INVALID, ["registry", "0755", "chmod 700"],
    ),
    "a home open to others": (
        lambda path: change(path, mode=0o750), RefusalCode.HOME_INVALID, ["0750", "chmod 700"],
    ),
    "a key open to others": (
        lambda path: change(path / "keys/ledger.key_secret", mode=0o640),
        RefusalCode.KEY_UNREADABLE, ["keys/ledger.key_secret", "0640", "chmod 600"],
    ),
    "a missing key": (
        remove("keys/front.omega.key_secret"),
        RefusalCode.KEY_UNREADABLE, ["keys/front.omega.key_secret"],
    ),
    "a key of another kind": (
        lambda path: change(path / "keys/ledger.key_secret", text="0123\n"),
        RefusalCode.KEY_UNREADABLE, ["keys/ledger.key_secret"],
    ),
    "a stranger among the client keys": (
        lambda path: change(path / "keys/clients/0123456789abcdef.toml", text="", mode=0o600),
        RefusalCode.KEY_UNREADABLE, ["keys/clients/0123456789abcdef.toml"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_gets_one_sentence_with_its_place(home: Home, fault: str) -> None:
    """Each fault is refused with its code and one sentence that names path and field."""
    apply, code, words = FAULTS[fault]
    apply(Path(home.path))
    with pytest.raises(HomeRefused) as refused:
        load_home(home.path, environment={})
    sentence = str(refused.value)
    assert refused.value.code == code, sentence
    assert "\n" not in sentence
    assert [word for word in words if word not in sentence] == [], sentence


def test_folder_of_another_owner_is_refused(home: Home) -> None:
    """A home that belongs to somebody else is not served, not even by root."""
    if os.getuid() != 0:
        # Only root can give a folder away.
        return
    os.chown(os.path.join(home.path, "ledger"), 65534, 65534)
    with pytest.raises(HomeRefused, match="belongs to user 65534"):
        load_home(home.path, environment={})


def test_home_is_found_by_option_then_environment_then_default(tmp_path: Path) -> None:
    """`--home` wins over the variable, the variable over the folder in the user's home."""
    named = {"OMEGA_GATEWAY_HOME": str(tmp_path / "variable")}
    assert find_home(str(tmp_path / "option"), named) == str(tmp_path / "option")
    assert find_home(None, named) == str(tmp_path / "variable")
    assert find_home(None, {}) == os.path.realpath(os.path.expanduser("~/.omega-gateway"))
    assert os.path.isabs(find_home("relative", {}))


def test_run_directory_is_where_the_configuration_says(
    home: Home, environment: dict[str, str], tmp_path: Path
) -> None:
    """Whatever the environment says later, sockets stay where the configuration put them."""
    assert home.run_directory.startswith(environment["XDG_RUNTIME_DIR"])
    assert load_home(home.path, environment={}).run_directory == home.run_directory
    assert home.writable == (home.path, home.anchor, home.run_directory)
    assert home.tcp_ports == ()
    assert stat.S_IMODE(os.lstat(home.run_directory).st_mode) == 0o700
    assert len(home.omega_endpoint) < 100


def test_run_directory_is_made_again_after_a_restart_of_the_machine(home: Home) -> None:
    """Sockets' folders live in memory; when both levels are gone they are made again."""
    os.rmdir(home.run_directory)
    os.rmdir(os.path.dirname(home.run_directory))
    prepare_run_directory(home.run_directory)
    assert stat.S_IMODE(os.lstat(home.run_directory).st_mode) == 0o700


def test_run_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """A folder that others could enter or replace is refused, however it came to be."""
    shared = tmp_path / "shared"
    shared.mkdir()
    for mode in (0o777, 0o770, 0o707):
        shared.chmod(mode)
        with pytest.raises(HomeRefused, match="others may replace"):
            prepare_run_directory(str(shared / "run"))
    shared.chmod(0o1777)
    prepare_run_directory(str(shared / "run"))
    (shared / "open").mkdir()
    (shared / "open").chmod(0o755)
    with pytest.raises(HomeRefused, match="0755"):
        prepare_run_directory(str(shared / "open"))
    (shared / "link").symlink_to(shared / "run")
    with pytest.raises(HomeRefused, match="not a folder"):
        prepare_run_directory(str(shared / "link"))


def test_tcp_fronts_name_their_ports_for_the_seal(
    home: Home, environment: dict[str, str]
) -> None:
    """With numeric tcp endpoints the seal is told their ports, and the run directory stays."""
    changed = load_home(
        home.path, environment=environment,
        overrides={"omega.endpoint": "tcp://127.0.0.1:5701", "admin.endpoint": "tcp://*:5702"},
    )  # fmt: skip
    assert changed.tcp_ports == (5701, 5702)
    assert changed.run_directory == home.run_directory
    assert changed.writable == home.writable
