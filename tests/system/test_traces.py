"""What a call leaves behind: nothing of its contents, not in files nor in what forks the next."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from broker.client import Refused
from broker.keys import read_secret
from schemas.events import InvokeEnd, WorkerAttest
from schemas.payloads import TextPayload
from tests.support.gateway import running_gateway

pytestmark = [pytest.mark.system, pytest.mark.jail, pytest.mark.once]

TALKER = '''
from sandbox_worker.sdk import Context, TextPayload, method


@method()
def talk(context: Context, text: TextPayload) -> TextPayload:
    """Say something by every way there is."""
    context.progress(500, "note-" + text.text[::-1])
    if text.text.endswith("fail"):
        raise ValueError("message-" + text.text[::-1])
    return TextPayload("output-" + text.text[::-1])
'''
SAID = "xylophonist-8651"


def children(pid: int) -> list[int]:
    """The processes that one has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def readable(pid: int) -> bytes:
    """Everything in a process's memory that can be written, where its contents would lie."""
    found = []
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps, open(f"/proc/{pid}/mem", "rb") as mem:
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if match and "[v" not in line:
                begin, end = (int(text, 16) for text in match.groups())
                mem.seek(begin)
                found.append(mem.read(end - begin))
    return b"".join(found)


def test_nothing_of_a_call_is_left_in_files_or_processes() -> None:
    """Input, output, note, message and commitment keys of calls lie in no file of the home, and
    what is forked for the next call holds neither them nor any key of the gateway's."""
    with running_gateway() as gateway:
        gateway.install(gateway.write_plugin("talking-plugin", TALKER))
        omega = gateway.omega()
        result = omega.invoke("talking-plugin", "talk", TextPayload(SAID))
        assert result.text == f"output-{SAID[::-1]}"
        with pytest.raises(Refused) as refused:
            omega.invoke("talking-plugin", "talk", TextPayload(f"{SAID}fail"))
        assert f"message-liaf{SAID[::-1]}" in str(refused.value.refusal.plugin_message)
        assert result.commitment_key is not None
        contents = [SAID.encode(), SAID[::-1].encode(), result.commitment_key,
                    result.commitment_key.hex().encode()]
        secrets = [read_secret(str(path)).strip().encode()
                   for path in (gateway.home / "keys").glob("*.key_secret")]
        assert len(secrets) >= 4

        events = [event.fields for event in gateway.events()]
        assert sum(isinstance(event, InvokeEnd) for event in events) == 2
        [supervisor] = [event.pid for event in events if isinstance(event, WorkerAttest)]
        [zygote] = (child for stub in children(supervisor) for child in children(stub))
        if os.getuid() == 0:
            # Nobody else may look into it, which is what others are held by.
            memory = readable(zygote)
            assert b"Say something by every way" in memory
            assert [one for one in [*contents, *secrets] if one in memory] == []
        gateway.stop()

        # The log is not asked: in a development domain it shows authors what their plugins print.
        files = [path for path in gateway.home.rglob("*") if path.is_file()]
        assert any("state-" in path.name for path in files)
        for path in files:
            data = path.read_bytes()
            assert not any(one in data for one in contents), path
