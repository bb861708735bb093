"""What has no verdict is held, told to the engine with who it was, and released or discarded."""

from __future__ import annotations

import errno
import struct

import pytest

from engine.abi.numbers import Counter, FlowFlag, KernelVerdict, Mode, PostureBit, Present, StageNumber
from engine.abi.records import VerdictEntry
from engine.kernel.hold import VNET_BYTES, Hold
from engine.protocols.packet import SYN
from tests.kernel.lab import ALLOW, DENY, INSIDE, OUTSIDE, OUTSIDE6, UDP, UNDECIDED, Watch, cgroup_id, key
from tests.support import captures
from tests.support.netns import Agent, Wire


def test_an_unseen_connection_waits_for_its_verdict(watch: Watch, client: Agent, server: Agent) -> None:
    server.do(f"l = listening({OUTSIDE!r}, 4430)")
    client.do("os.setreuid(65534, 0)")
    client.start(f"s = connected({OUTSIDE!r}, 4430)")
    syn = watch.held()
    assert syn.packet.flags == SYN
    assert (syn.flow.src, syn.flow.dst, syn.flow.dport) == (key(INSIDE), key(OUTSIDE), 4430)
    assert syn.note.identity.tgid == syn.note.identity.tid == client.pid
    assert syn.note.identity.uid == 65534
    assert syn.note.identity.cgroup == cgroup_id(watch.lab.cgroup)
    assert syn.note.generation == watch.generation
    assert syn.note.ifindex == watch.lab.loaded.interfaces["guarded"]
    assert syn.note.stage == StageNumber.CONNECT
    assert not client.finished()
    watch.decide(syn, ALLOW)
    watch.release(syn)
    client.result()
    client.do("s.sendall(b'ping')")
    assert server.do("c = accepted(l); c.sendall(b'pong'); exactly(c, 4)") == b"ping"
    assert client.do("exactly(s, 4)") == b"pong"
    assert watch.nothing_held()
    assert watch.counted() == {Counter.HELD_CONNECT: 1, Counter.HIT_FLOW: 1}


def test_a_discarded_packet_never_arrives(watch: Watch, client: Agent, near: Wire, wire: Wire) -> None:
    client.do(f"s = udp(); s.connect(({OUTSIDE!r}, 5300)); s.send(b'first'); s.send(b'second')")
    watch.held()
    second = watch.held()
    assert second.packet.payload == b"second"
    watch.release(second)
    frames = wire.until_mark(near.mark())
    assert [frame for frame in frames if b"first" in frame] == []
    assert len([frame for frame in frames if b"second" in frame]) == 1


@pytest.mark.parametrize("address", [OUTSIDE, OUTSIDE6, f"::ffff:{OUTSIDE}"])
def test_both_families_are_held_and_pass(watch: Watch, client: Agent, server: Agent, address: str) -> None:
    """A socket of IPv6 that speaks IPv4 is on the wire and in the keys what it speaks."""
    own = address.rpartition("ffff:")[2]
    server.do(f"l = listening({own!r}, 4431)")
    client.start(f"s = connected({address!r}, 4431)")
    syn = watch.held()
    assert syn.flow.dst == key(own)
    assert syn.note.identity.tgid == client.pid
    watch.dest(own, 4431, ALLOW)
    watch.release(syn)
    client.result()
    client.do("s.sendall(b'x')")
    assert server.do("exactly(accepted(l), 1)") == b"x"


def test_segmentation_offload_survives_the_hold(watch: Watch, client: Agent, server: Agent) -> None:
    server.do(f"l = listening({OUTSIDE!r}, 4432)")
    watch.dest(OUTSIDE, 4432, UNDECIDED)
    client.do(f"s = connected({OUTSIDE!r}, 4432); data = bytes(range(256)) * 160; s.sendall(data)")
    server.start("got = exactly(accepted(l), 40960); got == bytes(range(256)) * 160")
    sizes = []
    while not server.finished():
        frame = watch.held()
        sizes.append(len(frame.packet.payload))
        watch.release(frame)
        if sum(sizes) >= 40960:
            break
    assert server.result() is True
    assert max(sizes) > 1500, "nothing was larger than a packet of the wire: the test proves nothing"


def test_nothing_else_of_a_held_flow_gets_through(watch: Watch, client: Agent, server: Agent, near: Wire, wire: Wire
                                                  ) -> None:  # fmt: skip
    server.do(f"l = listening({OUTSIDE!r}, 4433)")
    watch.dest(OUTSIDE, 4433, UNDECIDED)
    client.do(f"s = connected({OUTSIDE!r}, 4433)")
    for piece in (b"secret one", b"secret two", b"secret three"):
        client.do(f"s.sendall({piece!r})")
        while piece not in watch.held().packet.payload:
            pass  # what nobody acknowledged, sent again
    assert not any(b"secret" in frame for frame in wire.until_mark(near.mark()))


def test_a_denied_flow_drops_what_follows(watch: Watch, client: Agent, server: Agent, near: Wire, wire: Wire) -> None:
    server.do(f"l = listening({OUTSIDE!r}, 4434)")
    watch.dest(OUTSIDE, 4434, UNDECIDED)
    client.do(f"s = connected({OUTSIDE!r}, 4434); s.sendall(b'secret')")
    frame = watch.held()
    watch.decide(frame, DENY)
    client.do("s.sendall(b'secret again')")
    client.do("s.sendall(b'secret for ever')")
    assert not any(b"secret" in seen for seen in wire.until_mark(near.mark()))
    assert watch.counted()[Counter.DROPPED_FLOW] >= 2


def test_a_reset_of_a_denied_flow_reaches_the_peer(watch: Watch, client: Agent, server: Agent) -> None:
    server.do(f"l = listening({OUTSIDE!r}, 4435)")
    watch.dest(OUTSIDE, 4435, UNDECIDED)
    client.do(f"s = connected({OUTSIDE!r}, 4435)")
    server.do("c = accepted(l)")
    client.do("s.close()")
    with pytest.raises(ConnectionResetError):
        server.do("c.recv(1)")


def test_a_full_hold_queue_follows_its_posture(
    watch: Watch, client: Agent, server: Agent, near: Wire, wire: Wire
) -> None:
    server.do(f"s = bound({OUTSIDE!r}, 5301)")
    watch.configure(hold_limit=2)
    client.do(f"s = udp(); s.connect(({OUTSIDE!r}, 5301)); [s.send(b'closed') for _ in range(5)]")
    assert watch.counted() == {Counter.HELD_DATAGRAM: 2, Counter.DROPPED_HOLD_FULL: 3}
    watch.configure(hold_limit=2, open=PostureBit.HOLD_FULL)
    client.do("s.send(b'open')")
    assert [b"open" in frame for frame in wire.until_mark(near.mark()) if b"open" in frame or b"closed" in frame] == [
        True
    ]
    watch.held()
    client.do("s.send(b'room again')")
    assert watch.held().packet.payload == b"closed"
    assert watch.held().packet.payload == b"room again"


def test_a_stale_heartbeat_follows_its_posture(watch: Watch, client: Agent, near: Wire, wire: Wire) -> None:
    watch.configure(heartbeat_max=1)
    client.do(f"s = udp(); s.connect(({OUTSIDE!r}, 5302)); s.send(b'closed')")
    assert watch.counted() == {Counter.DROPPED_ENGINE_ABSENT: 1}
    watch.configure(heartbeat_max=1, open=PostureBit.ENGINE_ABSENT)
    client.do("s.send(b'open')")
    frames = wire.until_mark(near.mark())
    assert not any(b"closed" in frame for frame in frames)
    assert any(b"open" in frame for frame in frames)
    assert watch.counted()[Counter.PASSED_POSTURE] == 1
    assert watch.nothing_held()


def test_standing_verdicts_need_no_engine(watch: Watch, client: Agent, server: Agent) -> None:
    watch.configure(heartbeat_max=1)
    server.do(f"l = listening({OUTSIDE!r}, 4436)")
    watch.dest(OUTSIDE, 4436, ALLOW)
    client.do(f"s = connected({OUTSIDE!r}, 4436)")
    watch.dest(OUTSIDE, 4437, DENY)
    with pytest.raises(PermissionError):
        client.do(f"connected({OUTSIDE!r}, 4437)")


def test_while_observing_the_engine_sees_copies_and_nothing_is_dropped(
    watch: Watch, client: Agent, server: Agent
) -> None:
    watch.configure(mode=Mode.OBSERVE)
    server.do(f"l = listening({OUTSIDE!r}, 4438)")
    client.do(f"s = connected({OUTSIDE!r}, 4438); s.sendall(b'through')")
    assert server.do("c = accepted(l); exactly(c, 7)") == b"through"
    copy = watch.held()
    assert copy.packet.flags == SYN
    assert copy.note.flags & (FlowFlag.CLONED | FlowFlag.OBSERVE) == FlowFlag.CLONED | FlowFlag.OBSERVE
    watch.decide(copy, DENY)
    client.do("s.sendall(b'still')")
    assert server.do("exactly(c, 5)") == b"still"
    assert watch.counted()[Counter.WOULD_DROP] >= 1


def test_while_observing_a_standing_deny_only_counts(watch: Watch, client: Agent, server: Agent) -> None:
    watch.configure(mode=Mode.OBSERVE)
    watch.dest(OUTSIDE, 4439, DENY)
    server.do(f"l = listening({OUTSIDE!r}, 4439)")
    client.do(f"s = connected({OUTSIDE!r}, 4439); s.sendall(b'through')")
    assert server.do("exactly(accepted(l), 7)") == b"through"
    counted = watch.counted()
    assert counted[Counter.WOULD_DROP] >= 1
    assert Counter.DROPPED_DEST not in counted
    assert Counter.REFUSED_CONNECT not in counted


def test_in_panic_everything_passes_unseen(watch: Watch, client: Agent, server: Agent) -> None:
    watch.dest(OUTSIDE, 4440, DENY)
    watch.configure(mode=Mode.PANIC)
    server.do(f"l = listening({OUTSIDE!r}, 4440)")
    client.do(f"s = connected({OUTSIDE!r}, 4440); s.sendall(b'through')")
    assert server.do("exactly(accepted(l), 7)") == b"through"
    assert set(watch.counted()) == {Counter.PASSED_PANIC}
    assert watch.nothing_held()


def test_a_process_outside_the_control_group_is_unknown(watch: Watch, server: Agent) -> None:
    server.do(f"l = listening({OUTSIDE!r}, 4441)")
    stranger = watch.lab.agent(known=False)
    stranger.start(f"s = connected({OUTSIDE!r}, 4441)")
    syn = watch.held()
    assert syn.note.flags & FlowFlag.NO_STORAGE
    assert syn.note.identity == (0, 0, 0, 0, 0, 0)
    assert syn.note.cookie, "the socket itself is known"
    watch.decide(syn, ALLOW)
    watch.release(syn)
    stranger.result()
    stranger.do("s.sendall(b'x')")
    assert server.do("exactly(accepted(l), 1)") == b"x"


def test_datagrams_are_held_and_decided_by_flow(watch: Watch, client: Agent, server: Agent) -> None:
    server.do(f"s = bound({OUTSIDE!r}, 5303)")
    watch.introduce(client, 7)
    client.do(f"s = udp(); s.sendto(b'one', ({OUTSIDE!r}, 5303))")
    one = watch.held()
    assert one.note.identity.tgid == client.pid
    assert one.note.part == one.note.identity.exe == 7
    watch.decide(one, ALLOW)
    watch.release(one)
    client.do(f"s.sendto(b'two', ({OUTSIDE!r}, 5303))")
    assert server.do("s.recv(9), s.recv(9)") == (b"one", b"two")
    assert watch.counted() == {Counter.HELD_DATAGRAM: 1, Counter.HIT_FLOW: 1}


def test_a_shared_datagram_socket_shares_no_verdict(watch: Watch, client: Agent) -> None:
    """The socket is inherited by another program: its datagrams are that program's."""
    watch.introduce(client, 7)
    client.do(f"s = udp(); s.sendto(b'one', ({OUTSIDE!r}, 5304))")
    one = watch.held()
    watch.decide(one, ALLOW)
    watch.introduce(client, 8)
    client.do(f"s.sendto(b'two', ({OUTSIDE!r}, 5304))")
    two = watch.held()
    assert two.packet.payload == b"two"
    assert two.note.part == 8


@pytest.mark.parametrize("address", [OUTSIDE, OUTSIDE6, f"::ffff:{OUTSIDE}"])
@pytest.mark.parametrize("call", ["s.sendto(b'x', a)", "s.sendmsg([b'x'], [], 0, a)", "s.connect(a); s.send(b'x')"])
def test_every_way_to_send_a_datagram_tells_who(watch: Watch, client: Agent, address: str, call: str) -> None:
    client.do(f"s = udp({address!r}); a = ({address!r}, 5305); {call}")
    frame = watch.held()
    assert frame.note.identity.tgid == client.pid
    assert frame.note.identity.cgroup == cgroup_id(watch.lab.cgroup)
    assert frame.flow.dst == key(address.rpartition("ffff:")[2])
    assert frame.flow.transport == UDP


def test_a_name_verdict_of_a_datagram_flow_is_asked_again_for_a_new_connection(watch: Watch, client: Agent) -> None:
    """A new QUIC Initial may carry another name."""
    watch.introduce(client, 7)
    client.do(f"s = udp(); s.sendto(b'one', ({OUTSIDE!r}, 5306))")
    one = watch.held()
    watch.decide(one, VerdictEntry(KernelVerdict.ALLOW, 1, by_name=1))
    client.do(f"s.sendto(b'\\x40' + bytes(1300), ({OUTSIDE!r}, 5306))")
    assert watch.nothing_held()
    for first in (b"\xc3\0\0\0\x01", b"\xd3\x6b\x33\x43\xcf"):
        client.do(f"s.sendto({first!r} + bytes(1195), ({OUTSIDE!r}, 5306))")
        assert watch.held().packet.payload[:5] == first


@pytest.mark.parametrize("mark", [1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_frame_that_is_delivered_comes_in_by_its_interface(
    watch: Watch, client: Agent, near: Wire, mark: int
) -> None:
    """Whatever secret the engine drew; and with another one, nobody's frame does."""
    lab = watch.lab
    watch.configure(release_mark=mark)
    client.do(f"u = bound({INSIDE!r}, 5301)")
    packet = captures.ipv4(17, captures.udp(5302, 5301, b"delivered"), src=OUTSIDE, dst=INSIDE)
    words = sum(struct.unpack("!10H", packet[:20]))
    checksum = ~(words + (words >> 16)) & 0xFFFF
    frame = captures.ethernet(packet[:10] + checksum.to_bytes(2, "big") + packet[12:])
    mine = bytes.fromhex(lab.inside.ip("-o", "link", "show", "guarded").split("link/ether ")[1][:17].replace(":", ""))
    frame = mine + frame[6:]
    index = lab.loaded.interfaces["guarded"]

    def deliver(secret: int, sent: bytes) -> bool:
        hold = Hold(lab.pins.held_device, 1 << 20, secret)
        try:
            return hold.deliver(index, bytes(VNET_BYTES) + sent)
        finally:
            hold.close()

    assert not lab.inside.call(lambda: deliver(mark ^ 2, frame.replace(b"delivered", b"forgotten")))
    # The secret stays between the two programs: netfilter, routing and a socket with SO_RCVMARK (75) see no mark.
    client.do("u.setsockopt(socket.SOL_SOCKET, 75, 1)")
    for present in (Present(0), Present.INBOUND, Present.DNS):
        watch.configure(release_mark=mark, present=present)
        assert lab.inside.call(lambda: deliver(mark, frame))
        data, beside, _, _ = client.do("u.recvmsg(64, 64)")
        assert data == b"delivered"
        assert [value for _, _, value in beside] == [bytes(4)]


def test_a_frame_that_the_kernel_cannot_hand_over_has_left_the_queue(watch: Watch, client: Agent) -> None:
    """Before Linux 6.2 a datagram buffer with segmentation offload is one: EINVAL, and it is gone. Not counted, each
    would take a place in the queue for ever."""
    hold = watch.hold
    socket_, before = hold._in, hold.counts.lost

    class Before62:
        def recvmsg_into(self, buffers: list[bytearray], space: int) -> object:
            taken = socket_.recvmsg_into(buffers, space)
            if int.from_bytes(buffers[0][1:2], "little") == 5:
                raise OSError(errno.EINVAL, "Invalid argument")
            return taken

        def __getattr__(self, name: str) -> object:
            return getattr(socket_, name)

    hold._in = Before62()  # type: ignore[assignment]
    try:
        client.do(f"u = udp(); u.setsockopt(17, 103, 500); u.sendto(bytes(1500), ({OUTSIDE!r}, 5303))")
        client.do(f"udp().sendto(b'whole', ({OUTSIDE!r}, 5304))")
        assert watch.held().flow.dport == 5304
    finally:
        hold._in = socket_
    assert hold.counts.lost == before + 1
    assert hold.lost() == 1
    assert hold.lost() == 0
