"""The names of an address: from answers to questions that this host asked its own resolvers, and from nothing else."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest

from engine.abi.records import DnsEvent
from engine.protocols.dns import Kind, Message, Question, Service, encode
from engine.runtime.resolutions import CONNECTIONS, NAMES, QUESTIONS, Resolutions
from tests.support.lookups import RESOLVER, SECOND, STRANGER, SYN, Lookup, alias, key, labels, points

PLACE = "198.51.100.20"
BELIEVED = frozenset({key(RESOLVER)})


class World(Resolutions):
    def __init__(self, capacity: int = 1000) -> None:
        self.clock = 0
        super().__init__(capacity, lambda: BELIEVED, lambda: self.clock)

    def see(self, *events: DnsEvent | Iterable[DnsEvent]) -> None:
        for event in events:
            for one in [event] if isinstance(event, DnsEvent) else event:
                self.observe(one)

    def of(self, address: str = PLACE, now: int = 0) -> tuple[str, ...]:
        return self.names(key(address), now)[0]


@pytest.fixture
def world() -> World:
    return World()


def looked_up(name: str, *addresses: str, sport: int = 40_000, ttl: int = 60) -> Iterable[DnsEvent]:
    return Lookup(sport=sport).looked_up(name, *(points(name, address, ttl) for address in addresses))


# ---- what is learnt


def test_the_name_that_was_asked_for_is_the_addresses(world: World) -> None:
    world.see(looked_up("a.example", PLACE, "198.51.100.21"))
    assert world.names(key(PLACE), 0) == (("a.example",), 60 * SECOND)
    assert world.of("198.51.100.21") == ("a.example",)
    assert world.of("198.51.100.22") == ()


def test_names_are_sorted_and_normalised(world: World) -> None:
    world.see(looked_up("B.Example", PLACE), looked_up("a.EXAMPLE", PLACE, sport=2))
    assert world.of() == ("a.example", "b.example")


def test_ipv6_and_ipv4_in_it_have_the_keys_of_the_gate(world: World) -> None:
    kind = Kind.AAAA
    world.see(Lookup().looked_up("six.example", points("six.example", "2001:db8::1"), kind=kind))
    # As on the wire: the packed form of ::ffff:198.51.100.20, which leaves the host as IPv4.
    world.see(Lookup().looked_up("mapped.example", points("mapped.example", "::ffff:198.51.100.20"), kind=kind))
    assert world.of("2001:db8::1") == ("six.example",)
    assert world.of() == ("mapped.example",)


def test_each_link_of_the_chain_is_a_name_of_the_address(world: World) -> None:
    records = [
        points("c.example", PLACE, 30), alias("b.example", "C.Example", 300), alias("a.example", "B.example", 10),
    ]  # fmt: skip
    world.see(Lookup().looked_up("A.example", *records))
    assert world.of() == ("a.example", "b.example", "c.example")
    # Each for as long as everything that leads from it to the address.
    assert world.of(now=10 * SECOND) == ("b.example", "c.example")
    assert world.of(now=30 * SECOND) == ()


def test_what_does_not_hang_together_with_the_question_is_not_believed(world: World) -> None:
    records = [
        points("a.example", "198.51.100.21"), points("bank.example", PLACE), alias("other.example", "bank.example"),
        alias("bank.example", "x.example"),
    ]  # fmt: skip
    world.see(Lookup().looked_up("a.example", *records))
    assert world.of("198.51.100.21") == ("a.example",)
    assert (world.of(), len(world)) == ((), 1)


def test_an_address_beside_an_alias_is_not_the_alias_s(world: World) -> None:
    records = [alias("a.example", "b.example"), points("a.example", PLACE), points("b.example", "198.51.100.21")]
    world.see(Lookup().looked_up("a.example", *records))
    assert (world.of(), world.of("198.51.100.21")) == ((), ("a.example", "b.example"))


@pytest.mark.parametrize(
    "records",
    [
        [alias("a.example", "b.example"), alias("b.example", "a.example"), points("a.example", PLACE)],
        [alias("a.example", "a.example"), points("a.example", PLACE)],
        [alias("a.example", "b.example"), alias("A.example", "c.example"), points("b.example", PLACE)],
        [alias(f"{n}.example" if n else "a.example", f"{n + 1}.example") for n in range(16)]
        + [points("16.example", PLACE)],
    ],
    ids=["loop", "of itself", "fork", "17 names"],
)
def test_a_chain_that_leads_nowhere_for_sure_says_nothing(world: World, records: list[object]) -> None:
    world.see(Lookup().looked_up("a.example", *records))  # type: ignore[arg-type]
    assert len(world) == 0


def test_a_chain_of_16_names_is_followed(world: World) -> None:
    chain = [alias(f"{number}.example", f"{number + 1}.example") for number in range(15)]
    world.see(Lookup().looked_up("0.example", *chain, points("15.example", PLACE)))
    assert len(world.of()) == 16


def test_the_kind_that_was_asked_for_is_the_kind_that_counts(world: World) -> None:
    world.see(Lookup().looked_up("a.example", points("a.example", PLACE), kind=Kind.AAAA))
    world.see(Lookup().looked_up("a.example", points("a.example", PLACE), kind=16))
    hint = Service(labels("a.example"), 60, Kind.SVCB, 1, (), (key(PLACE)[12:],))
    world.see(Lookup().looked_up("a.example", hint, kind=Kind.HTTPS))
    world.see(Lookup().looked_up("a.example", hint, kind=Kind.A))
    assert len(world) == 0


def test_the_hints_of_a_service_are_its_owners_and_never_its_targets(world: World) -> None:
    # Whoever has the zone evil.example writes both the target and the addresses beside it.
    hint = Service(labels("www.evil.example"), 60, Kind.HTTPS, 1, labels("bank.example"), (key(PLACE)[12:],))
    records = [alias("evil.example", "www.evil.example"), hint]
    world.see(Lookup().looked_up("evil.example", *records, kind=Kind.HTTPS))
    assert world.of() == ("evil.example", "www.evil.example")


@pytest.mark.parametrize("name", [(b"a.b", b"example"), (b"a b", b"example"), (b"\xc3\xa4",), (b"1", b"2"), ()])
def test_a_name_that_is_no_host_name_is_dropped(world: World, name: tuple[bytes, ...]) -> None:
    lookup = Lookup()
    question = (Question(name, Kind.A),)
    world.see(lookup.event(encode(Message(7, False, question))))
    records = (alias("x", "host.example")._replace(owner=name), points("host.example", PLACE))
    world.see(lookup.event(encode(Message(7, True, question, records)), ingress=True))
    assert world.of() == ("host.example",)


# ---- whom to believe


def test_an_answer_that_nobody_asked_for_is_not_believed(world: World) -> None:
    world.see(Lookup().gets("bank.example", points("bank.example", PLACE)))
    assert (world.of(), world.observed.unasked) == ((), 1)


def test_a_program_cannot_name_an_address_by_asking_its_own_server(world: World) -> None:
    own = Lookup(server=STRANGER)
    world.see(own.looked_up("bank.example", points("bank.example", PLACE)))
    assert (world.of(), world.observed.elsewhere) == ((), 1)


def test_a_stranger_cannot_answer_what_the_resolver_was_asked(world: World) -> None:
    asked, stranger = Lookup(), Lookup(server=STRANGER)
    world.see(asked.asks("bank.example"), stranger.gets("bank.example", points("bank.example", PLACE)))
    assert world.of() == ()


@pytest.mark.parametrize(
    "bent",
    [
        Lookup().gets("bank.example", points("bank.example", PLACE), number=8),
        Lookup().gets("other.example", points("other.example", PLACE)),
        Lookup().gets("bank.example", points("bank.example", PLACE), kind=Kind.AAAA),
        Lookup(sport=40_001).gets("bank.example", points("bank.example", PLACE)),
        Lookup(transport=6).gets("bank.example", points("bank.example", PLACE)),
        Lookup().gets("bank.example", points("bank.example", PLACE), time=11 * SECOND),
        Lookup().gets("bank.example", points("bank.example", PLACE), time=-1),
        Lookup().gets("bank.example", points("bank.example", PLACE))._replace(ingress=False),
        Lookup().asks("bank.example")._replace(ingress=True, tuple=Lookup().arriving),
        Lookup().gets("bank.example", points("bank.example", PLACE))._replace(truncated=True),
        # From a container with raw sockets, as the resolver's: it comes in by another interface.
        Lookup().gets("bank.example", points("bank.example", PLACE))._replace(ifindex=3),
    ],
    ids=[
        "number", "name", "type", "port", "transport", "too late", "before it was asked", "left this host",
        "a question that comes back", "cut", "interface",
    ],
)  # fmt: skip
def test_an_answer_must_be_the_questions_own(world: World, bent: DnsEvent) -> None:
    world.see(Lookup().asks("bank.example"), bent)
    assert len(world) == 0


def test_a_question_that_this_host_was_asked_is_none_of_its_own(world: World) -> None:
    lookup = Lookup()
    served = lookup.asks("bank.example")._replace(ingress=True)
    world.see(served, lookup.gets("bank.example", points("bank.example", PLACE)))
    assert len(world) == 0


def test_a_question_that_comes_back_is_no_answer_whatever_it_holds(world: World) -> None:
    lookup = Lookup()
    question = (Question(labels("bank.example"), Kind.A),)
    echo = encode(Message(7, False, question, (points("bank.example", STRANGER),)))
    world.see(lookup.asks("bank.example"), lookup.event(echo, ingress=True))
    world.see(lookup.gets("bank.example", points("bank.example", PLACE)))
    assert (world.of(STRANGER), world.of()) == ((), ("bank.example",))


@pytest.mark.parametrize(("opcode", "klass"), [(4, 1), (5, 1), (0, 3), (0, 255)])
def test_only_plain_questions_about_the_internet_count(world: World, opcode: int, klass: int) -> None:
    lookup = Lookup()
    question = (Question(labels("a.example"), Kind.A, klass),)
    world.see(lookup.event(encode(Message(7, False, question, opcode=opcode))))
    answer = Message(7, True, question, (points("a.example", PLACE),), opcode=opcode)
    world.see(lookup.event(encode(answer), ingress=True))
    assert len(world) == 0


def test_a_question_is_answered_once(world: World) -> None:
    lookup = Lookup()
    world.see(lookup.looked_up("a.example", points("a.example", "198.51.100.21")))
    world.see(lookup.gets("a.example", points("a.example", PLACE)))
    assert (world.of(), world.observed.unasked) == ((), 1)


def test_a_server_may_ask_from_its_own_port(world: World) -> None:
    world.see(Lookup(sport=53).looked_up("a.example", points("a.example", PLACE)))
    assert world.of() == ("a.example",)


def test_letter_case_is_no_other_name(world: World) -> None:
    # Some clients ask in random case, and some servers answer in their own.
    lookup = Lookup()
    world.see(lookup.asks("a.eXaMpLe"), lookup.gets("A.example", points("a.EXAMPLE", PLACE)))
    assert world.of() == ("a.example",)


def test_a_wrong_answer_does_not_use_the_question_up(world: World) -> None:
    lookup = Lookup()
    world.see(lookup.asks("a.example"), lookup.gets("a.example", points("a.example", STRANGER), number=9))
    world.see(lookup.gets("a.example", points("a.example", PLACE)))
    assert (world.of(), world.of(STRANGER)) == (("a.example",), ())


def test_a_question_that_is_sent_again_may_wait_as_long_again(world: World) -> None:
    lookup = Lookup()
    world.see(lookup.asks("a.example"), lookup.asks("a.example", time=8 * SECOND))
    world.see(lookup.gets("a.example", points("a.example", PLACE), time=17 * SECOND))
    assert world.of(now=17 * SECOND) == ("a.example",)


@pytest.mark.parametrize("how", [{"rcode": 3}, {"rcode": 16}, {"truncated": True}])
def test_a_failure_or_a_part_of_an_answer_says_nothing(world: World, how: dict[str, int]) -> None:
    lookup = Lookup()
    world.see(lookup.asks("a.example"), lookup.gets("a.example", points("a.example", PLACE), **how))  # type: ignore[arg-type]
    assert (len(world), world.observed.answered) == (0, 1)


def test_messages_that_are_none_are_counted_and_harmless(world: World) -> None:
    lookup = Lookup()
    world.see(lookup.event(b"no message"), lookup.event(b"\xff" * 60, ingress=True))
    two = (Question(labels("a.example"), Kind.A), Question(labels("b.example"), Kind.A))
    world.see(lookup.event(encode(Message(1, False, two))), lookup.event(encode(Message(1, False, two, opcode=5))))
    assert (world.observed.malformed, world.observed.asked) == (2, 0)


def test_the_resolvers_of_the_moment_count() -> None:
    now_believed: set[bytes] = set()
    world = Resolutions(100, lambda: now_believed)
    for believed, expected in ((set(), 0), (set(BELIEVED), 1)):
        now_believed |= believed
        for event in looked_up("a.example", PLACE):
            world.observe(event)
        assert len(world) == expected


# ---- TCP


def test_messages_of_a_connection_are_questions_and_answers(world: World) -> None:
    lookup = Lookup(transport=6)
    world.see(lookup.opened(), lookup.asks("a.example", number=1), lookup.asks("b.example", number=2))
    world.see(lookup.gets("b.example", points("b.example", PLACE), number=2))
    world.see(lookup.gets("a.example", points("a.example", PLACE), number=1))
    assert world.of() == ("a.example", "b.example")


def test_a_message_in_pieces_and_pieces_of_two(world: World) -> None:
    lookup = Lookup(transport=6)
    world.see(lookup.opened(), lookup.asks("a.example", number=1), lookup.asks("b.example", number=2))
    both = b"".join(
        lookup.gets(name, points(name, PLACE), number=number).payload
        for number, name in ((1, "a.example"), (2, "b.example"))
    )
    lookup.seqs[True] -= len(both)
    for start in range(0, len(both), 45):
        world.see(lookup.event(both[start : start + 45], ingress=True))
    assert world.of() == ("a.example", "b.example")


def test_a_stream_whose_beginning_was_not_seen_is_not_read(world: World) -> None:
    lookup = Lookup(transport=6)
    world.see(lookup.looked_up("a.example", points("a.example", PLACE)))
    asking, _ = lookup.opened()
    world.see(asking, lookup.looked_up("a.example", points("a.example", PLACE)))
    assert len(world) == 0


def test_after_a_hole_a_stream_is_not_read_from_anywhere_else(world: World) -> None:
    """A text record may hold a message of its own: whoever made a segment be lost would have it read as an answer."""
    lookup = Lookup(transport=6)
    world.see(lookup.opened(), lookup.asks("evil.example", kind=16, number=1), lookup.asks("bank.example", number=2))
    lost = lookup.event(bytes(100), ingress=True)._replace(truncated=True)
    world.see(lost, lookup.gets("bank.example", points("bank.example", PLACE), number=2))
    assert (len(world), world.observed.cut) == (0, 1)


def test_without_a_cut_a_hole_waits_to_be_filled(world: World) -> None:
    lookup = Lookup(transport=6)
    world.see(lookup.opened(), lookup.asks("a.example", number=1), lookup.asks("b.example", number=2))
    first = lookup.gets("a.example", points("a.example", PLACE), number=1)
    world.see(lookup.gets("b.example", points("b.example", PLACE), number=2))
    assert world.of() == ()
    world.see(first)
    assert world.of() == ("a.example", "b.example")


def test_two_versions_of_a_stream_are_the_end_of_it(world: World) -> None:
    lookup = Lookup(transport=6)
    world.see(lookup.opened(), lookup.asks("a.example", number=1), lookup.asks("b.example", number=2))
    answer = lookup.gets("a.example", points("a.example", PLACE), number=1)
    world.see(answer, answer._replace(payload=answer.payload[:-1] + b"\x66"))
    world.see(lookup.gets("b.example", points("b.example", PLACE), number=2))
    assert (world.of(), world.observed.malformed) == (("a.example",), 1)


def test_two_servers_that_answer_one_connection_are_both_not_believed(world: World) -> None:
    lookup = Lookup(transport=6)
    asking, answering = lookup.opened()
    world.see(asking, answering, answering._replace(seq=answering.seq + 999))
    world.see(lookup.looked_up("a.example", points("a.example", PLACE)))
    assert (len(world), world.observed.malformed) == (0, 1)


def test_segments_that_are_sent_again_change_nothing(world: World) -> None:
    lookup = Lookup(transport=6)
    opened = lookup.opened()
    asked = lookup.asks("a.example")
    world.see(opened, opened, asked, opened[0], asked, lookup.gets("a.example", points("a.example", PLACE)))
    assert (world.of(), world.observed.asked) == (("a.example",), 1)


def test_the_server_s_first_segment_sent_again_does_not_begin_the_stream_anew(world: World) -> None:
    lookup = Lookup(transport=6)
    opened = lookup.opened()
    world.see(opened, lookup.asks("a.example"))
    answer = lookup.gets("a.example", points("a.example", PLACE)).payload
    lookup.seqs[True] -= len(answer)
    world.see(lookup.event(answer[:9], ingress=True), opened[1], lookup.event(answer[9:], ingress=True))
    assert world.of() == ("a.example",)


def test_a_connection_is_answered_where_it_left(world: World) -> None:
    lookup = Lookup(transport=6)
    asking, answering = lookup.opened()
    world.see(asking, answering._replace(ifindex=3), lookup.asks("a.example"))
    world.see(lookup.gets("a.example", points("a.example", PLACE))._replace(ifindex=3))
    assert len(world) == 0


def test_a_new_connection_on_the_same_ports_is_a_new_one(world: World) -> None:
    for isn, name in ((5000, "a.example"), (9000, "b.example")):
        lookup = Lookup(transport=6, isn=isn)
        world.see(lookup.opened(), lookup.looked_up(name, points(name, PLACE)))
    assert world.of() == ("a.example", "b.example")


def test_a_question_in_the_first_segment_counts(world: World) -> None:
    lookup = Lookup(transport=6)
    question = lookup.asks("a.example")  # TCP Fast Open
    world.see(
        question._replace(tcp_flags=SYN), lookup.opened()[1], lookup.gets("a.example", points("a.example", PLACE))
    )
    assert world.of() == ("a.example",)


def test_a_length_that_no_message_has_ends_the_connection(world: World) -> None:
    lookup = Lookup(transport=6)
    world.see(lookup.opened(), lookup.event(struct.pack("!H", 5)))
    world.see(lookup.looked_up("a.example", points("a.example", PLACE)))
    assert (len(world), world.observed.malformed) == (0, 1)


# ---- time


@pytest.mark.parametrize(
    ("ttl", "kept"), [(0, 5), (1, 5), (5, 5), (6, 6), (86_400, 86_400), (604_800, 86_400), ((1 << 31) + 9, 5)]
)
def test_a_name_is_kept_for_its_time_within_bounds(world: World, ttl: int, kept: int) -> None:
    world.see(looked_up("a.example", PLACE, ttl=ttl))
    assert world.names(key(PLACE), kept * SECOND - 1) == (("a.example",), kept * SECOND)
    assert world.names(key(PLACE), kept * SECOND) == ((), None)
    assert len(world) == 0


def test_the_time_runs_from_when_the_answer_passed(world: World) -> None:
    lookup = Lookup()
    world.see(lookup.looked_up("a.example", points("a.example", PLACE, 60), time=100 * SECOND))
    world.clock = 130 * SECOND
    assert world.known(key(PLACE)) == (("a.example",), 30.0)
    world.clock = 160 * SECOND
    assert world.known(key(PLACE)) == ((), None)


def test_the_first_name_to_end_bounds_them_all(world: World) -> None:
    world.see(looked_up("a.example", PLACE, ttl=60), looked_up("b.example", PLACE, ttl=20))
    assert world.names(key(PLACE), 0) == (("a.example", "b.example"), 20 * SECOND)
    assert world.names(key(PLACE), 20 * SECOND) == (("a.example",), 60 * SECOND)


def test_an_answer_with_less_time_does_not_shorten_an_earlier_one(world: World) -> None:
    world.see(looked_up("a.example", PLACE, ttl=60), looked_up("a.example", PLACE, ttl=10))
    assert world.names(key(PLACE), 0)[1] == 60 * SECOND
    world.see(looked_up("a.example", PLACE, ttl=90))
    assert world.names(key(PLACE), 0)[1] == 90 * SECOND


# ---- bounds


def test_an_address_keeps_its_newest_names(world: World) -> None:
    for number in range(NAMES + 4):
        world.see(looked_up(f"n{number}.example", PLACE))
    world.see(looked_up("n5.example", PLACE), looked_up("last.example", PLACE))
    # n4 was the oldest when the last one came; n5 had just been answered again.
    assert set(world.of()) == {f"n{number}.example" for number in range(5, NAMES + 4)} | {"last.example"}
    assert len(world) == NAMES


def test_in_all_the_longest_unused_address_goes_first() -> None:
    world = World(capacity=4)
    for number in range(4):
        world.see(looked_up(f"n{number}.example", f"192.0.2.{number}"))
    assert world.of("192.0.2.0") == ("n0.example",)
    world.see(looked_up("new.example", PLACE))
    assert [world.of(f"192.0.2.{number}") for number in range(4)] == [
        ("n0.example",), (), ("n2.example",), ("n3.example",),
    ]  # fmt: skip
    assert (world.of(), len(world)) == (("new.example",), 4)


def test_an_address_that_is_answered_again_is_not_the_longest_unused() -> None:
    world = World(capacity=2)
    for address in ("192.0.2.0", "192.0.2.1", "192.0.2.0"):
        world.see(looked_up("a.example", address))
    world.see(looked_up("new.example", PLACE))
    assert (world.of("192.0.2.0"), world.of("192.0.2.1"), world.of()) == (("a.example",), (), ("new.example",))


def test_one_answer_cannot_push_every_other_name_out() -> None:
    world = World(capacity=200)
    world.see(looked_up("a.example", PLACE))
    world.see(looked_up("evil.example", *(f"203.0.113.{number}" for number in range(200))))
    assert (world.of(), len(world)) == (("a.example",), 65)


def test_questions_are_bounded_and_the_newest_wait(world: World) -> None:
    lookups = [Lookup(sport=1024 + number) for number in range(QUESTIONS + 1)]
    world.see(*(lookup.asks("a.example") for lookup in lookups))
    world.see(lookups[0].gets("a.example", points("a.example", STRANGER)))
    world.see(lookups[1].gets("a.example", points("a.example", PLACE)))
    assert (world.of(STRANGER), world.of()) == ((), ("a.example",))


def test_a_question_that_is_sent_again_is_a_new_one(world: World) -> None:
    lookups = [Lookup(sport=1024 + number) for number in range(QUESTIONS + 1)]
    world.see(*(lookup.asks("a.example") for lookup in [*lookups[:-1], lookups[0], lookups[-1]]))
    world.see(lookups[0].gets("a.example", points("a.example", PLACE)))
    assert world.of() == ("a.example",)


def test_connections_are_bounded_and_the_newest_are_followed(world: World) -> None:
    lookups = [Lookup(transport=6, sport=1024 + number) for number in range(CONNECTIONS + 1)]
    world.see(*(lookup.opened() for lookup in lookups))
    world.see(lookups[0].looked_up("a.example", points("a.example", STRANGER)))
    world.see(lookups[1].looked_up("a.example", points("a.example", PLACE)))
    assert (world.of(STRANGER), world.of()) == ((), ("a.example",))
    # One that goes on is as good as new: the next one pushes another out.
    world.see(Lookup(transport=6, sport=999).opened(), lookups[1].looked_up("b.example", points("b.example", PLACE)))
    assert world.of() == ("a.example", "b.example")
