"""A stage's commands about bundles that are registered, and about the prober that tries them."""

from __future__ import annotations

from broker.arrivals import Arrival, Readable
from schemas.messages import RegisterPlugin, ValidateBundle
from tests.scenarios.asking import Asking
from tests.simulation.clients import bundle
from tests.simulation.fakes import LAUNCHER_FD, FakeLauncher


class Registering(Asking):
    """What an operator does with bundles. The stage gives ids, a front and a launcher."""

    launcher: FakeLauncher
    probers = "quick"

    def register(self, plugin: str, version: str, who: str = "operator") -> Arrival:
        """An operator, or the `second`, registers a version."""
        return self.from_operator(
            RegisterPlugin(request_id=self.uuid(), bundle=bundle(plugin, version)),
            self.id_of(who))

    def validate(self, plugin: str, version: str) -> Arrival:
        """An operator asks what hinders a version."""
        return self.from_operator(
            ValidateBundle(request_id=self.uuid(), bundle=bundle(plugin, version)),
            self.id_of("operator"))

    def become(self, word: str) -> None:
        """From now on schemas are tried `quick`, in the same turn, or `slow`, when told."""
        self.probers = word

    def tried(self, outcome: str) -> Arrival:
        """The prober that runs `fits`, finds `trouble`, or is ended by a `signal=N`."""
        said = {"fits": b'{"fits":true}', "trouble": b'{"schema":"x","sentence":"too slow"}'}
        number = int(outcome.removeprefix("signal=")) if "=" in outcome else 0
        self.launcher.tried(said.get(outcome, b""), 0, number)
        return Readable(LAUNCHER_FD)
