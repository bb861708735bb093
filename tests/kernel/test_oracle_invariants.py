"""What must be true of every sequence, whatever the programs do on the way: by a policy that is asked anew about each
packet, and by nothing else.

What leaves must be allowed by the policy in force, or belong to what was let in, or have a word above the policy; what
is dropped must have a reason; the answer to what left must come in. The same for what comes in. The engine answers what
is held at once or later, in another generation even. No oracle of the programs has a part in it.
"""

from __future__ import annotations

import random
from collections import Counter as Tally
from collections.abc import Iterator

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from engine.abi.numbers import FlowFlag, InterfaceKind, KernelVerdict, Mode, PostureBit, StageNumber
from engine.abi.records import Tuple
from engine.protocols.packet import ACK, RST, SYN, TCP, URG
from tests.kernel.judging import Bench, opened
from tests.kernel.reign import OPEN, REFUSED, Read, Reign, Waiting, answers_to, stream_of
from tests.kernel.traffic import INSIDE, PLAIN, UNKNOWN, Sender
from tests.support import headers
from tests.support.headers import Headers, Status
from tests.support.oracle import Way
from tests.support.testrun import LOOPBACK, PASS, REDIRECT

STEPS = 80


class Proof:
    """One sequence. `seen` counts the reasons why something passed or was dropped."""

    def __init__(self, bench: Bench, seed: int) -> None:
        loaded = bench.lab.loaded
        assert loaded is not None
        bench.clear()
        self.bench, self.seed = bench, seed
        self.reign = Reign(random.Random(seed), gates=(bench.gate,), hold_ifindex=loaded.hold_ifindex, seed=seed)
        self.reign.begin()
        ethernet = self.reign.ethernet
        for number, kind in ((INSIDE, ethernet | InterfaceKind.INSIDE), (PLAIN, ethernet)):
            bench.interface(number, kind)
        self.came = {each.flow.reversed() for each in self.reign.senders if each.accepted and each.socket.stored}
        """Tuples of what came in and was judged, and was no answer."""
        self.asked: set[Tuple] = set()
        """Tuples of the answers to datagrams that left."""
        self.expected: set[Tuple] = set()
        """Those of them that must come in, because nobody came by them before."""

        self.unclear: set[tuple[Tuple, int, int]] = set()
        """Connections that are no longer the stream which was read."""
        self.begun: dict[tuple[Tuple, int, int], int] = {}
        """Where the stream of a connection begins that has sent something."""

    def run(self) -> None:
        reign = self.reign
        for step in range(STEPS):
            why, what = f"seed {self.seed}, step {step}", reign.chance.randrange(100)
            if what < 40:
                self.leaves(why)
            elif what < 72:
                self.comes_in(why)
            elif what < 93:
                self.engine()
            elif what < 95:
                reign.flip()
            elif what < 97:
                reign.configure()
            else:
                reign.reopen()

    def engine(self) -> None:
        if (answers := self.reign.answer()) is not None:
            self.asked.add(answers)

    def read(self, frame: bytes) -> Headers:
        return headers.read(frame, 14 if self.reign.ethernet else 0)

    def held(self, read: Headers, *, came_in: bool) -> bool:
        """Was this packet held for an answer, and not only for its sender to be told? The engine takes it at once."""
        self.bench.gate.take(self.bench.gate.hold_queue()[0])
        note = self.bench.gate.held(read.flow)
        assert note is not None
        if note.stage == StageNumber.REJECT:
            return False
        if note.stage == StageNumber.AGAIN:
            self.bench.seen["asked again"] += 1
        self.reign.waiting.append(Waiting(read, note, came_in))
        return True

    def no_engine(self) -> PostureBit:
        """The posture that is the engine's absence, or that of a queue which may be full."""
        config = self.reign.config
        absent = PostureBit.ENGINE_ABSENT if not config.heartbeat_max else PostureBit(0)
        return absent | (PostureBit.HOLD_FULL if config.hold_limit < STEPS else PostureBit(0))

    # ---- what leaves

    def leaves(self, why: str) -> None:
        sender, frame, way = self.reign.out()
        self.bench.interface(LOOPBACK, self.reign.ethernet | (InterfaceKind.INSIDE if self.reign.inside else 0))
        read = self.read(frame)
        why = f"{why}: {read} of {sender} {way} under {self.reign.config}, law {self.reign.generation}"
        passes = self.may_leave(sender, read, way) or self.may_leave(sender, self.whole(sender, frame, read), way)
        drops = self.may_not_leave(sender, read, way)
        self.bench.gate.take(self.bench.gate.hold_queue()[0])
        action = self.bench.leaves(sender.socket, frame, way).action
        if not sender.socket.stored:
            sender.socket.flags = sender.socket.start = 0
        if action == PASS:
            assert passes, f"left: {why}"
            read_from = passes == "policy" and not self.reign.config.open & self.no_engine()
            assert not (read_from and self.brings_again(sender, read)), f"left unasked: {why}"
            self.bench.seen[f"out: {passes}"] += 1
            self.note(read, passes)
        elif action != REDIRECT or not self.held(read, came_in=False):
            assert drops, f"was dropped: {why}"
            self.bench.seen[f"not out: {drops}"] += 1
        self.went_on(sender, read)

    def whole(self, sender: Sender, frame: bytes, read: Headers) -> Headers:
        """Read a malformed frame as if its network header told its length. A connection's segment goes by what was
        decided of the connection before that is looked at: the sockets of this host tell no lies of it."""
        if read.status is not Status.MALFORMED or not self.reign.ethernet:
            return read
        at, length = (14 + 2, len(frame) - 14) if frame[14] >> 4 == 4 else (14 + 4, len(frame) - 14 - 40)
        mended = self.read(frame[:at] + length.to_bytes(2, "big") + frame[at + 2 :])
        plain = mended.status is Status.OK and mended.flow.transport == TCP and self.is_own(sender, mended)
        return mended if plain else read

    def brings_again(self, sender: Sender, read: Headers) -> bool:
        """Is this payload that begins before the end of what its stream's verdict was read from? A first copy may have
        been lost on purpose, so it is compared, or the verdict is another one than that."""
        known, law = self.reign.reads.get(self._stream(sender, read)), self.reign.law
        exe = self._exe(sender, read)
        if known is None or not read.payload or read.flow.dst in self.reign.said:
            return False
        if self._stream(sender, read) in self.unclear or self.begins_another(read, known):
            return False
        if law.out(read.flow, exe, payload=False) is not KernelVerdict.UNDECIDED:
            return False
        if known.judged == sender.socket.start:
            return False  # where no SYN was seen, one number in 2^32 says that nothing was read
        first = read.seq + bool(read.flags & SYN)
        self.bench.seen["beside what was read"] += 1
        return 0 < (known.judged - first) & 0xFFFFFFFF < 1 << 20

    @staticmethod
    def begins_another(read: Headers, known: Read) -> bool:
        """Does this segment open another stream than the one that was read?"""
        opens = bool(read.flags & SYN) and not read.flags & ACK
        return opens and (read.seq + 1) & 0xFFFFFFFF != known.first

    def went_on(self, sender: Sender, read: Headers) -> None:
        """Of another stream on the same connection, and of one whose numbers may come round, nothing is claimed."""
        if read.flow.transport != TCP:
            return
        stream = self._stream(sender, read)
        if self.begun.setdefault(stream, sender.socket.start) != sender.socket.start:
            self.unclear.add(stream)
        if (known := self.reign.reads.get(stream)) is None:
            return
        forgotten = not self.is_own(sender, read) and known.generation != self.reign.generation
        if self.begins_another(read, known) or forgotten or 1 << 30 <= (read.seq - known.judged) & 0xFFFFFFFF < 1 << 31:
            self.unclear.add(stream)

    def _stream(self, sender: Sender, read: Headers) -> tuple[Tuple, int, int]:
        own = sender.socket.stored and self.is_own(sender, read)
        return stream_of(read.flow, sender.socket.cookie, sender.socket.connections if own else 0)

    def note(self, read: Headers, passes: str) -> None:
        """A datagram has left: its answer is to be let in, unless the flow is somebody else's."""
        if read.status is not Status.OK or read.flow.transport == TCP or (key := answers_to(read)) is None:
            return
        if passes in ("panic", "released"):
            return
        self.asked.add(key)
        if key not in self.came:
            self.expected.add(key)

    def may_leave(self, sender: Sender, read: Headers, way: Way) -> str:
        """Why this packet may pass; empty: it may not."""
        reign, config, flow, stored = self.reign, self.reign.config, read.flow, self.is_own(sender, read)
        if open_ := self._open(read, way):
            return open_
        if not sender.socket.cookie and way.came_by == INSIDE:
            return "forwarded"
        if config.mode != Mode.ENFORCE:
            return "observed"
        if flow.dst in reign.spared:
            return "never-deny"
        if reign.strategy and stored and sender.socket.identity.cgroup == 5:
            return "strategy"
        opens = bool(read.flags & SYN) and not read.flags & ACK
        if flow.transport == TCP and not read.payload and (read.flags & RST or not (stored or opens)):
            return "bare"
        if (inbound := self._from_outside(sender, read)) in (*OPEN, KernelVerdict.NONE):
            return "answer"
        own = inbound is None or not self.is_accepted(sender, read)
        if own and reign.verdict(flow, self._exe(sender, read), payload=bool(read.payload)) in OPEN:
            return "policy"
        return "posture" if config.open & self.no_engine() else ""

    def may_not_leave(self, sender: Sender, read: Headers, way: Way) -> str:
        config, flow = self.reign.config, read.flow
        if config.mode != Mode.ENFORCE:
            return ""
        if self._refused_out(sender, read, flow) or (
            sender.transport == TCP and self._refused_out(sender, read, sender.flow)
        ):
            return "policy"
        unknown = not sender.socket.cookie and way.came_by == UNKNOWN
        if unknown and not config.open & PostureBit.UNKNOWN_INTERFACE:
            return "unknown interface"
        if (closed := self._closed(read)) is not None:
            return closed
        if not self.is_own(sender, read) and self._is_urgent_notice(read):
            return "urgent"
        if self.no_engine() & ~config.open:
            return "posture"
        inbound = flow.transport == TCP and self._from_outside(sender, read) is not None
        coming = (sender.flow if self.is_accepted(sender, read) else flow).reversed()
        return "answer" if inbound and self._refused_in(coming) else ""

    def _refused_out(self, sender: Sender, read: Headers, flow: Tuple) -> bool:
        if flow.dst in self.reign.spared:
            return False
        exe = self._exe(sender, read)
        verdicts = {self.reign.verdict(flow, exe, payload=payload) for payload in (False, True)}
        return bool(verdicts & set(REFUSED))

    @staticmethod
    def is_own(sender: Sender, read: Headers) -> bool:
        """Does the socket's storage speak of this packet? What goes astray is of nobody, unless it opens something."""
        socket, flow = sender.socket, read.flow
        if flow.transport != TCP or not socket.peer_port or not socket.stored:
            return socket.stored
        opens = bool(read.flags & SYN) and not read.flags & ACK
        return opens or (
            (flow.dst, flow.dport) == (socket.peer, socket.peer_port) and socket.local_port in (0, flow.sport)
        )

    def is_accepted(self, sender: Sender, read: Headers) -> bool:
        """Until it opens a connection of its own, an accepted socket is the other end of the one that it was given."""
        still = sender.accepted and sender.socket.flags & FlowFlag.INBOUND
        to = (read.flow.dst, read.flow.dport) == (sender.flow.dst, sender.flow.dport)
        return bool(still) and to and self.is_own(sender, read)

    def _exe(self, sender: Sender, read: Headers) -> int:
        return sender.socket.identity.exe if self.is_own(sender, read) else 0

    def _from_outside(self, sender: Sender, read: Headers) -> KernelVerdict | None:
        """The verdict on the flow that was opened from outside to which this packet belongs; NONE: they are not judged.
        None: there is no such flow."""
        flow, law = read.flow.reversed(), self.reign.law
        accepted = self.is_accepted(sender, read)
        if accepted:
            flow = sender.flow.reversed()  # its own port may be translated
        if accepted and (self.reign.inside or not law.judges_inbound):
            return KernelVerdict.NONE
        if read.flow.transport in headers.ANSWERS and not headers.is_icmp(read, headers.ANSWERS):
            return None
        if read.flow.transport == TCP and self.is_own(sender, read) and not accepted:
            return None
        if not accepted and not (flow in self.came and law.judges_inbound):
            return None
        return law.into(flow, payload=False)

    def _refused_in(self, coming: Tuple) -> bool:
        return bool({self.reign.law.into(coming, payload=payload) for payload in (False, True)} & set(REFUSED))

    def _open(self, read: Headers, way: Way) -> str:
        """What passes whatever a policy says."""
        config = self.reign.config
        if config.mode == Mode.PANIC:
            return "panic"
        if way.mark and way == Way(LOOPBACK, config.release_mark):
            return "released"
        if read.status in (Status.NOT_IP, Status.LINK_CONTROL):
            return "link"
        posture = {Status.FRAGMENT: PostureBit.FRAGMENT, Status.MALFORMED: PostureBit.MALFORMED}.get(read.status)
        return "posture" if posture and config.open & posture else ""

    def _closed(self, read: Headers) -> str | None:
        """None: it can be read. Empty: the posture passes it."""
        posture = {Status.FRAGMENT: PostureBit.FRAGMENT, Status.MALFORMED: PostureBit.MALFORMED}.get(read.status)
        if posture is None:
            return None if read.status is Status.OK else ""
        return "" if self.reign.config.open & posture else "headers"

    def _is_urgent_notice(self, read: Headers) -> bool:
        """A segment without payload that names a byte which the server will leave out of what it reads."""
        notice = read.flow.transport == TCP and read.flags & URG and not read.payload
        return bool(notice) and not self.reign.config.open & PostureBit.MALFORMED

    # ---- what comes in

    def comes_in(self, why: str) -> None:
        frame, _, mark = self.reign.coming()
        self.bench.interface(LOOPBACK, self.reign.ethernet)
        read = self.read(frame)
        accepted = any(
            each.accepted and each.socket.stored and each.flow == read.flow.reversed() for each in self.reign.senders
        )
        why = f"{why}: in {read} {mark=} {accepted=} under {self.reign.config}, law {self.reign.generation}"
        passes, drops = self.may_come_in(read, mark, accepted=accepted), self.may_not_come_in(read)
        action = self.bench.comes_in(frame, found=int(accepted), accepted=accepted, mark=mark).action
        if self._key(read) in self.expected:
            assert action == PASS, f"an answer was not let in: {why}"
        judged = self.reign.law.judges_inbound and passes not in ("released", "panic", "link", "never-deny")
        if judged and read.status is Status.OK and self._key(read) not in self.asked:
            self.came.add(read.flow)
        if action == PASS:
            assert passes, f"came in: {why}"
            self.bench.seen[f"in: {passes}"] += 1
        elif action != REDIRECT or not self.held(read, came_in=True):
            assert drops, f"was kept out: {why}"
            self.bench.seen[f"not in: {drops}"] += 1

    @staticmethod
    def _key(read: Headers) -> Tuple:
        kind = int(headers.is_icmp(read, headers.ANSWERS))
        return read.flow._replace(dport=kind) if read.flow.transport in headers.ANSWERS else read.flow

    def may_come_in(self, read: Headers, mark: int, *, accepted: bool) -> str:
        reign, config, flow = self.reign, self.reign.config, read.flow
        if (open_ := self._open(read, Way(LOOPBACK, mark))) or not reign.law.judges_inbound:
            return open_ or "not judged"
        if config.mode != Mode.ENFORCE:
            return "observed"
        if flow.src in reign.spared:
            return "never-deny"
        opens = bool(read.flags & SYN) and not read.flags & ACK
        if flow.transport == TCP and (read.flags & RST or opens is accepted):
            return "answer"
        if headers.is_icmp(read, headers.ERRORS):
            return "error"
        if self._key(read) in self.asked:
            return "answer"
        if reign.law.into(flow, payload=bool(read.payload)) in OPEN:
            return "policy"
        return "posture" if config.open & self.no_engine() else ""

    def may_not_come_in(self, read: Headers) -> str:
        config, flow = self.reign.config, read.flow
        if config.mode != Mode.ENFORCE:
            return ""
        if (closed := self._closed(read)) is not None:
            return closed
        if self._is_urgent_notice(read) and flow in self.came:
            return "urgent"
        if flow.src in self.reign.spared or headers.is_icmp(read, headers.ERRORS):
            return ""
        if self.no_engine() & ~config.open:
            return "posture"
        return "policy" if self._refused_in(flow) else ""


REASONS = (
    "out: answer", "out: policy", "out: bare", "out: never-deny", "out: strategy", "out: posture", "out: forwarded",
    "out: released", "out: observed", "out: panic", "not out: policy", "not out: answer", "not out: posture",
    "not out: headers", "not out: unknown interface", "in: answer", "in: error", "in: policy", "in: never-deny",
    "in: posture", "in: not judged", "in: released", "in: observed", "not in: policy", "not in: posture",
    "not in: headers", "not out: urgent", "asked again", "beside what was read",
)  # fmt: skip


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with opened() as bench:
        yield bench


@settings(max_examples=200, deadline=None, phases=(Phase.explicit, Phase.generate), report_multiple_bugs=False)
@given(seed=st.integers(0, 1 << 48))
@example(seed=23309)  # a SYN with payload that begins another stream on the connection that was read
def test_nothing_passes_and_nothing_is_dropped_without_a_reason(bench: Bench, seed: int) -> None:
    bench.lab.inside.call(lambda: Proof(bench, seed).run())


def test_these_sequences_give_every_reason(bench: Bench) -> None:
    def many() -> None:
        for seed in range(100):
            Proof(bench, seed).run()

    bench.seen = Tally()
    bench.lab.inside.call(many)
    assert set(REASONS) <= {reason for reason, times in bench.seen.items() if times >= 3}
