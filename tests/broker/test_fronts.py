"""Another key for a front: whatever step was the last, the home can be served."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker import fronts
from broker.client_profile import read_profile
from broker.home import Home, create_home, load_home
from broker.keys import KeyFileRefused, new_curve_pair, write_secret

FRONT = "front.omega"
LATER_US = 2**52


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A development home."""
    path = tmp_path / "home"
    return create_home(str(path), "development", None,
                       environment={"XDG_RUNTIME_DIR": str(tmp_path)})


def again(home: Home) -> Home:
    """The same home, as its files are now."""
    return load_home(home.path, environment={})


def begun(home: Home) -> Home:
    """The home with a rotation of front.omega."""
    endpoint = fronts.beside(home.omega_endpoint, "beef")
    assert endpoint is not None
    fronts.begin(home.path, FRONT, endpoint, LATER_US)
    return again(home)


def test_both_keys_are_served_and_new_profiles_learn_the_new_one(home: Home):
    """The next key's endpoint is the front's, the old one stays beside it until its time."""
    after = begun(home)
    new, old = after.fronts[FRONT]
    assert (old.endpoint, old.pair, old.until_us) == (
        home.omega_endpoint, home.keys.front_omega, LATER_US)
    assert (after.omega_endpoint, new.until_us) == (new.endpoint, 0)
    assert new.endpoint == f"{old.endpoint}-beef"
    assert new.pair != old.pair
    assert after.fronts["front.admin"] == home.fronts["front.admin"]
    profile = os.path.join(home.path, "profiles", "omega")
    before = read_profile(profile)
    assert fronts.teach(profile, after.fronts[FRONT])
    assert not fronts.teach(profile, after.fronts[FRONT])
    learned = read_profile(profile)
    assert learned.pair == before.pair
    assert learned.settings.server_key == new.pair.public
    with pytest.raises(KeyFileRefused, match="not the one that is replaced"):
        fronts.teach(os.path.join(home.path, "profiles", "auditor"), after.fronts[FRONT])


def test_a_beginning_that_was_cut_short_changed_nothing(home: Home):
    """A next key without a rotation is no endpoint; the next beginning uses it."""
    secret = new_curve_pair()
    write_secret(fronts.next_path(home.path, FRONT), secret.secret)
    assert again(home).fronts == home.fronts
    assert begun(home).fronts[FRONT][0].pair == secret


@pytest.mark.parametrize("steps", range(4))
def test_an_end_that_was_cut_short_serves_the_new_key_and_is_done_again(home: Home, steps: int):
    """After each of its three files the home has exactly the new endpoint, or still both."""
    names = sorted(os.listdir(os.path.join(home.path, "keys")))
    new = begun(home).fronts[FRONT][0]
    config = os.path.join(home.path, "gateway.toml")
    if steps > 0:
        text = Path(config).read_text().replace(f'{home.omega_endpoint}"', f'{new.endpoint}"')
        Path(config).write_text(text)
    if steps > 1:
        os.replace(fronts.next_path(home.path, FRONT), fronts.secret_path(home.path, FRONT))
    if steps > 2:
        os.unlink(fronts.rotation_path(home.path, FRONT))
    assert again(home).fronts[FRONT][0] == new
    assert len(again(home).fronts[FRONT]) == (2 if steps == 0 else 1)
    fronts.finish(home.path, FRONT, config)
    assert again(home).fronts[FRONT] == (new,)
    assert again(home).keys.front_omega == new.pair
    assert sorted(os.listdir(os.path.join(home.path, "keys"))) == names
    assert os.stat(config).st_mode & 0o077 == 0


def test_a_configuration_without_the_line_is_left_to_its_writer(home: Home):
    """What cannot be changed safely is not: the sentence says which line to write."""
    config = Path(home.path, "gateway.toml")
    text = config.read_text()
    begun(home)
    config.write_text(text.replace("[omega]\nendpoint", "[omega]\nhigh_water_mark = 9\n#"))
    before = config.read_text()
    with pytest.raises(KeyFileRefused, match=r"write `endpoint = .*-beef\"` under \[omega\]"):
        fronts.finish(home.path, FRONT, str(config))
    assert config.read_text() == before


@pytest.mark.parametrize("text", ["", "endpoint = 1", 'format = "omega-front-rotation/2"'])
def test_a_damaged_rotation_is_refused_with_its_path(home: Home, text: str):
    """Nothing is guessed about which key is served where."""
    begun(home)
    Path(fronts.rotation_path(home.path, FRONT)).write_text(text)
    with pytest.raises(KeyFileRefused, match=r"front\.omega\.rotation\.toml"):
        fronts.read_rotation(home.path, FRONT)
