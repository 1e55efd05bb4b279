"""What a client needs to reach a gateway: the profile directory's `profile.toml`.

A profile is a directory `{profile.toml, client.key_secret, head.note}`; only its public key is
known to the home. `head.note` is the last checkpoint this client accepted. Keys are Z85 text of 40
characters.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from schemas.launch import CurveKey
from schemas.names import LogId, Milliseconds, Role

PROFILE_FILE: Final = "profile.toml"
KEY_FILE: Final = "client.key_secret"
HEAD_FILE: Final = "head.note"


class ClientProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`profile.toml`. `endpoint` is a ZeroMQ address; `verifier_key` is the ledger's C2SP key."""

    format: Literal["omega-profile/1"]
    endpoint: Annotated[str, Meta(min_length=6, max_length=200, pattern=r"^(ipc|tcp)://")]
    server_key: CurveKey
    role: Role
    log_id: LogId | None = None
    verifier_key: str | None = None
    timeout_ms: Milliseconds = 30_000
