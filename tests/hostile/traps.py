"""The 48 known traps of libzmq, pyzmq and msgspec that could end or open a gateway, with tests.

A trap that a peer can spring names attacks, which `test_hostile_peers` sends at a running broker;
one that lies in how sockets are set up names the tests of that; one that cannot concern us says
why. The measured ones were reproduced on libzmq 4.3.5 and pyzmq 27.3; the rest are known defects.
"""

from __future__ import annotations

from typing import NamedTuple


class Trap(NamedTuple):
    """One trap.

    Attributes:
        id: its number; R for reported, not measured.
        what: happens to whoever falls into it.
        attacks: names in `test_hostile_peers`.
        tests: beside them, as file::name below `tests`.
        reason: why nothing of it can be tried here; empty where there is a test.
    """

    id: str
    what: str
    attacks: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    reason: str = ""


_START = "broker/test_transport_start.py::"
_PLAIN = "broker/test_transport.py::"
_WORKERS = "broker/test_transport_workers.py::"
_CROWDS = "broker/test_transport_crowds.py::"
_ZAP = "broker/test_zap.py::"
_FLOOR = (_START + "test_a_libzmq_below_the_floor_is_refused",)
_ENFORCED = (_START + "test_the_fronts_carry_their_domain_and_it_is_enforced",)

TRAPS: tuple[Trap, ...] = (
    Trap("T01", "a CURVE server without a ZAP handler admits every key",
         ("wrong keys",), (_START + "test_the_self_test_passes_only_a_door_that_turns_a_stranger"
                           "_away",)),
    Trap("T02", "enforcement is a draft option and must be set by its number", (), _ENFORCED),
    Trap("T03", "a ZAP handler that stops first leaves the door open", (),
         (_START + "test_a_second_handler_in_one_process_is_impossible",
          _START + "test_nobody_can_connect_before_the_gateway_listens")),
    Trap("T04", "a handler that raises admits nobody any more", ("wrong keys",),
         (_ZAP + "test_answering_any_frames_raises_nothing",
          _ZAP + "test_any_frames_get_a_verdict")),
    Trap("T05", "a handler that is silent holds handshakes", ("half handshakes",),
         (_WORKERS + "test_a_handshake_before_the_report_waits_for_it_while_others_go_on",)),
    Trap("T06", "a second peer with an id in use is connected and its messages vanish",
         ("stolen routing ids",)),
    Trap("T07", "with handover the second peer with an id gets the first one's replies",
         ("stolen routing ids",)),
    Trap("T08", "the next id of a ROUTER, chosen by a peer, aborts the process",
         ("chosen routing ids",), (_START + "test_a_peer_that_takes_the_next_routing_id_does_not"
                                   "_abort_the_broker",)),
    Trap("T08c", "the same under CURVE, with one authorised key", ("chosen routing ids",)),
    Trap("T09", "a monitor that is not read stops the io thread after a thousand connections",
         ("empty connections", "a crowd on a port", "a flood of handshakes"),
         (_CROWDS + "test_a_busy_loop_takes_in_a_bounded_number_of_strangers",)),
    Trap("T10", "the size limit is one frame's: an unfinished message of many takes all memory",
         ("an endless message", "a worker's endless message"),
         ("broker/test_footprint.py::test_an_endless_message_ends_with_its_connection",)),
    Trap("T11b", "under CURVE the size limit counts 33 bytes more; beyond it connections just end",
         ("frames above the limit", "frames of the largest size"),
         (_PLAIN + "test_a_frame_of_exactly_the_limit_passes_and_one_byte_more_ends_the"
          "_connection",)),
    Trap("T12", "the monitor tells failed handshakes by four codes",
         ("other mechanisms", "wrong keys", "wrong HELLO", "wrong INITIATE")),
    Trap("T13", "garbage is told as nothing but ACCEPTED and DISCONNECTED", ("garbage",),
         (_PLAIN + "test_many_strangers_are_one_fact_with_a_count",)),
    Trap("T15", "without descriptors the io thread spins and nobody gets in",
         ("a crowd on a port",),
         (_CROWDS + "test_a_worker_without_a_descriptor_is_a_refusal_and_nothing_is_left_open",
          "system/test_hardening.py::test_strangers_on_a_port_do_not_take_the_gateways"
          "_descriptors")),
    Trap("T16", "a ROUTER drops replies in silence, or hangs", ("a client that reads nothing",),
         (_PLAIN + "test_replies_to_a_peer_that_does_not_read_end_as_full",
          _PLAIN + "test_a_reply_to_a_peer_that_left_is_gone")),
    Trap("T17", "an ipc socket follows the umask, and binding replaces what lies at its path", (),
         (_START + "test_socket_files_are_the_owners_alone_whatever_the_umask",
          _START + "test_what_came_to_lie_at_an_endpoint_after_the_first_look_is_left_alone")),
    Trap("T18", "a client may add thousands of properties, a long id, or no socket type",
         ("odd metadata",)),
    Trap("T18b", "without ZAP a peer writes its own User-Id", ("other mechanisms",), _ENFORCED),
    Trap("T18c", "with ZAP the peer's User-Id must lose", ("a forged user id",)),
    Trap("T18d", "a frame without a User-Id raises when asked", ("other mechanisms",), _ENFORCED),
    Trap("T19", "with the default linger the end hangs on an unsendable message",
         ("a client that reads nothing",), (_PLAIN + "test_what_was_sent_before_the_close_still"
                                            "_leaves",)),
    Trap("T20", "a fork with a live context is undefined", (),
         ("broker/test_seal.py::test_sealed_broker_runs_and_signals_nothing",)),
    Trap("T21", "heartbeats do not notice a worker whose main thread is stuck", (),
         ("sandbox_worker/test_worker.py::test_ping_is_answered_by_the_main_loop",
          "scenarios/test_every_number.py::test_a_number_has_its_effect")),
    Trap("T22", "empty frames, delimiters, a thousand frames: delivered as they were sent",
         ("wrong numbers of frames", "malformed frames")),
    Trap("T23", "a socket used from two threads aborts", (), (),
         "one thread owns every socket; the only other one, the watchdog of flushes, has none"),
    Trap("T24", "a secret in argv or environment can be read", (),
         ("broker/test_launchers.py::test_worker_gets_a_whole_environment_and_nothing_else",)),
    Trap("T28", "a ROUTER shared by workers can be aborted by one", ("a second peer on a worker's "
                                                                    "socket",),
         (_WORKERS + "test_one_workers_key_opens_no_other_workers_socket",)),
    Trap("T29", "a duplicate's messages are held until its sender blocks", ("stolen routing ids",)),
    Trap("T30", "replayed, damaged, old, plain and repeated messages",
         ("spoilt messages", "floods that hang up", "wrong HELLO", "wrong INITIATE")),
    Trap("T31", "enforcement with an empty domain switches authentication off", ("wrong keys",),
         (_START + "test_options_are_read_back",)),
    Trap("T32", "binding steals a living socket's path, and paths have 107 bytes", (),
         (_START + "test_an_endpoint_in_use_is_refused_and_left_as_it_is",
          _START + "test_a_path_too_long_for_a_socket_is_one_sentence")),
    Trap("T33", "an empty User-Id of ZAP's must win too", ("a forged user id",)),
    Trap("T34", "ZAP runs once: a revoked key works on while it is connected", (),
         ("system/test_hardening.py::test_a_revoked_key_is_refused_at_the_door_also_after_a"
          "_restart",)),
    Trap("T35", "ZAP's identity frame is the server's", (),
         (_ZAP + "test_one_wrong_part_is_refused",)),
    Trap("T36", "`rand` is never seeded, so the first id is known", ("chosen routing ids",),
         (_START + "test_a_peer_that_takes_the_next_routing_id_aborts_an_unprotected_router",)),
    Trap("T36b", "the ids after the first are known too", ("chosen routing ids",)),
    Trap("T40", "bad UTF-8, deep nesting and duplicate keys are no decoding error or none at all",
         ("malformed frames", "wrong JSON"), ("schemas/test_codec.py::test_any_bytes_give_a_message"
                                              "_or_a_wire_error",)),
    Trap("T41", "msgpack NaN, extensions and odd keys are taken where no type forbids them",
         ("malformed frames",), ("schemas/test_codec.py::test_keys_that_are_not_texts",)),
    Trap("T42", "two hundred thousand frames in one message take a second to throw away",
         ("wrong numbers of frames", "a message of very many frames"),
         (_PLAIN + "test_a_message_of_too_many_frames_is_dropped_counted_and_costs_nobody_else",)),
    Trap("R1", "small frames without a copy are copied, and cost an object each", (), (),
         "a cost, not a fault: only the first frame of a message is taken that way, for its key"),
    Trap("R2", "a cancelled receive of zmq.asyncio loses a message", (), (),
         "zmq.asyncio is used nowhere; the client library watches descriptors"),
    Trap("R3", "closing a context while keys are made may abort", (), (),
         "the broker has one context; keys are made on its thread, and it is closed last"),
    Trap("R4", "CVE-2019-6250: code by a frame's length", ("garbage",), _FLOOR),
    Trap("R5", "CVE-2019-13132: stack by a CURVE handshake", ("wrong INITIATE",), _FLOOR),
    Trap("R6", "CVE-2020-15166: no service by an unfinished handshake",
         ("half handshakes", "slow handshakes by the hundred"), _FLOOR),
    Trap("R7", "heap by ZMTP 1, leaks by subscriptions and metadata (2020)",
         ("garbage", "spoilt messages", "odd metadata"), _FLOOR),
    Trap("R8", "faults mended after 4.3.5 only, when a pipe ends twice",
         ("a crowd on a port", "half handshakes")),
)
"""T08 and T36 have a control: the attack ends a bare ROUTER."""
