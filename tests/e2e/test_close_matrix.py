"""Every way a connection can end, through every way its bytes can take. What is expected:

- an end of stream becomes a FIN on the other side, behind the last byte, and the other flow lives on;
- a reset becomes a reset, and what came before it is a prefix of what was sent;
- who answers early and goes is still heard: the whole answer first, then the reset;
- a reset after that side's own FIN only ends the flow towards it;
- without a target the client gets a reset;
- a wire that ends without the end mark of what is spoken on it becomes a reset.

Evidence is what the sockets of both ends saw, and the daemon's closing line."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import signal
import traceback
from typing import Callable, Optional

import pytest

from chains import Cutter, facing, has_doubles, is_marked, make_certificate
from daemon import Daemon, configuration, tunnel
from peers import (CLIENT_STREAM, KIB, MIB, TARGET_STREAM, ClosedPort, FullTarget, Target, connect, transfer,
                   wait_readable)

pytestmark = pytest.mark.sanitize

PATHS = ("copy", "splice", "pair", "chained")

# What moves each way beforehand, so that the daemon is in its bulk mode (splice) or is not (copy) …
BEFORE = {"copy": 1 * KIB, "filters": 1 * KIB, "splice": 4 * MIB, "pair": 1 * KIB, "chained": 700 * KIB}
# … and what moves while the end comes.
DATA = {"copy": 8 * KIB, "filters": 8 * KIB, "splice": 1 * MIB, "pair": 100 * KIB, "chained": 300 * KIB}


class Unreachable:
    """An address to which there is no route on any machine."""

    text = "255.255.255.255:9"

    def close(self):
        pass


@dataclasses.dataclass
class Event:
    title: str
    run: Callable  # between two sockets
    at_service: Optional[Callable] = None  # with a built-in service behind a pair; None = why_no_pair
    why_no_pair: str = ""
    service: str = "echo"
    target: Callable = Target
    timeouts: Optional[dict] = None
    why_no_splice: str = ""  # if it has no meaning there
    only_filters: bool = False
    no_target: bool = False  # "first" is then only whether the client has spoken before


class Cell:
    """One way to end, begun by one side, over one path. Its tunnel, hence its listener, is its own."""

    def __init__(self, number, event, first, path):
        self.event, self.first_is_client, self.path = event, first == "client", path
        self.name = f"cell{number}"
        self.label = f"{event.title:36} {first} first  {path:8}"
        self.data, self.before = DATA[path], BEFORE[path]
        self.target = self.client = self.peer = self.daemon = self.directory = None

    def not_applicable(self):
        """Why this cell has no meaning, or nothing."""
        if self.path == "splice":
            return self.event.why_no_splice
        if self.path == "pair" and not self.event.at_service:
            return self.event.why_no_pair
        if self.path == "pair" and not self.first_is_client and not self.event.no_target:
            return "a built-in service never ends first"
        return ""

    def tunnels(self):
        """The configuration of this cell, and its target with it."""
        if self.path == "pair":
            if self.event.no_target:  # a tunnel at its cap refuses as a closed port does
                return (tunnel(self.name, f"internal:{self.name}") +
                        tunnel(f"{self.name}-cap", "internal:echo", f"internal:{self.name}", max_connections=1))
            return tunnel(self.name, f"internal:{self.event.service}")
        self.target = self.event.target()
        if self.path == "chained":
            return (tunnel(self.name, f"internal:{self.name}", timeouts=self.event.timeouts) +
                    tunnel(f"{self.name}-second", self.target.text, f"internal:{self.name}",
                           timeouts=self.event.timeouts))
        return tunnel(self.name, self.target.text, timeouts=self.event.timeouts)

    def run(self, daemon, text, directory):
        """What happened, as a row; and whether it was right."""
        self.daemon, self.text, self.directory = daemon, text, directory
        try:
            (self.event.at_service if self.path == "pair" else self.event.run)(self)
            return True, f"ok    {self.label} {self.story()}"
        except Exception as error:
            where = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == __file__][-1]
            own_log = f"\n{self.daemon.log()}" if self.daemon is not daemon else ""
            return False, (f"WRONG {self.label} {type(error).__name__} in {where.name}, line {where.lineno}: {error} "
                           f"({self.story()}){own_log}")
        finally:
            for end in (self.client, self.peer, self.target):
                if end:
                    end.close()

    def story(self):
        told = [("client", self.client), ("target", self.peer)]
        return " | ".join(f"{name}: {', '.join(end.story)}" for name, end in told if end)

    # --- what events are made of

    def dial(self):
        to_service = self.path == "pair"
        expects = None if self.event.service == "chargen" else CLIENT_STREAM if to_service else TARGET_STREAM
        self.client = connect(self.daemon.address(self.name), expects)
        self.client_text = "{}:{}".format(*self.client.sock.getsockname())
        return self.client

    def accept(self):
        self.peer = self.target.accept()
        return self.peer

    def sides(self):
        """Whoever goes first, and the other."""
        return (self.client, self.peer) if self.first_is_client else (self.peer, self.client)

    def open(self):
        """Both ends connected, and bytes moved both ways."""
        self.dial()
        self.accept()
        transfer(self.client, self.peer, self.before)
        transfer(self.peer, self.client, self.before)
        return self.sides()

    def expect_whole(self, first, other):
        """`other` sees all of `first`, then its FIN; its own flow still moves, whole, and ends by itself."""
        other.expect_fin(first)
        first.expect_quiet()
        self.expect_rest(first, other)

    def expect_rest(self, first, other):
        transfer(other, first, self.data)
        other.finish()
        first.expect_fin(other)
        self.expect_log("ok", whole=True)

    def expect_log(self, reason, ended_by=None, whole=False):
        """The closing line of the tunnel; of a chain the last tunnel's, which knows the client too."""
        name = f"{self.name}-second" if self.path == "chained" else self.name
        line = self.daemon.ended(name, client=self.client_text)
        assert line["reason"] == reason, f"the log says reason={line['reason']}, not {reason}"
        if ended_by:
            assert line["ended_by"] == ended_by, f"the log says ended_by={line['ended_by']}, not {ended_by}"
        if whole:
            assert int(line["up"]) == self.client.sent_bytes, f"the log says up={line['up']}"
            assert int(line["down"]) == self.client.got_bytes, f"the log says down={line['down']}"

    def before_last(self):
        """Daemons that only lead to the last one."""
        return []

    def expect_reset_log(self):
        self.expect_log("reset", "client" if self.first_is_client else "target")

    def own_daemon(self):
        """A daemon for this cell alone, since it will be stopped for a while."""
        workers = self.daemon.text.partition("\n")[0]
        return Daemon(self.directory / self.name, f"{workers}\n{self.text}")


class FilterCell(Cell):
    """Over tunnels one behind the other that speak a chain of filters between them: two, of which the last has the
    chain on its near side, or three, of which the middle one has it on both sides."""

    def __init__(self, number, event, first, chain, both):
        super().__init__(number, event, first, "filters")
        self.chain, self.hops = chain, 3 if both else 2
        self.label += f"{'+'.join(chain)}, {'both sides' if both else 'near'}"
        self.cutter, self.daemons, self.own = None, [], []  # front first

    def not_applicable(self):
        if self.event.only_filters and not is_marked(self.chain):
            return "no end mark"
        return ""

    def begin(self):
        self.target = self.event.target()
        self.leads_to = self.target.text

    def hop(self, number, certificates):
        """Its sections and its tunnel there. Hops count from the last, which the one before it has to find."""
        is_last, is_front = number == 0, number == self.hops - 1
        if is_front and self.event.only_filters:
            self.cutter = Cutter(self.daemons[0].address(self.name))
            self.leads_to = self.cutter.text
        return facing(self.chain, self.leads_to, name=self.name, near=not is_front, far=not is_last,
                      certificates=certificates, timeouts=self.event.timeouts if is_last else None)

    def has_hop(self, daemon):
        self.daemons.insert(0, daemon)
        self.leads_to = "{}:{}".format(*daemon.address(self.name))

    def run(self, certificates, directory):
        self.certificates = certificates
        try:
            return super().run(self.daemons[-1], None, directory)
        finally:
            if self.cutter:
                self.cutter.close()
            for daemon in self.own:
                daemon.stop()

    def dial(self):
        self.client = connect(self.daemons[0].address(self.name))
        return self.client

    def before_last(self):
        return self.daemons[:-1]

    def expect_log(self, reason, ended_by=None, whole=False):
        """The closing line of the last tunnel. Bytes on a wire are not those of the client here."""
        line = self.daemons[-1].ended(self.name)
        assert line["reason"] == reason, f"the log says reason={line['reason']}, not {reason}"
        if ended_by:
            assert line["ended_by"] == ended_by, f"the log says ended_by={line['ended_by']}, not {ended_by}"

    def own_daemon(self):
        """The last of daemons for this cell alone."""
        self.daemons = []
        self.leads_to = self.target.text
        start_hops([self], lambda number, text: Daemon(self.directory / f"{self.name}-{number}", text),
                   self.certificates, workers=1)
        self.own = self.daemons
        return self.daemons[-1]


def start_hops(cells, begin_daemon, certificates, workers):
    """The daemons of all these cells: the last tunnels in one, those before them in the next, and so on."""
    for number in range(max(cell.hops for cell in cells)):
        those = [cell for cell in cells if number < cell.hops]
        pieces = [cell.hop(number, certificates) for cell in those]
        lines = dict.fromkeys(line for text, _ in pieces for line in text.splitlines())
        daemon = begin_daemon(number, configuration("\n".join(lines), "\n", *(text for _, text in pieces),
                                                    workers=workers))
        for cell in those:
            cell.has_hop(daemon)


# --- the events between two sockets


def fin(cell):
    first, other = cell.open()
    first.send_in_background(cell.data, then=first.finish)
    cell.expect_whole(first, other)


def rst(cell):
    first, other = cell.open()
    transfer(first, other, cell.data)
    first.send(4 * KIB)
    first.reset()
    other.expect_reset()
    assert first.sent_bytes - 4 * KIB <= other.got_bytes <= first.sent_bytes
    cell.expect_reset_log()


def data_with_fin(cell):
    first, other = cell.open()
    transfer(first, other, cell.data)
    first.send_with_fin(4 * KIB)
    cell.expect_whole(first, other)


def fin_before_connect(cell):
    if cell.first_is_client:
        client = cell.dial()
        client.send_in_background(cell.data, then=client.finish)
        cell.target.wait_dialled()
        client.join_sender()
        cell.target.open()
        cell.expect_whole(client, cell.accept())
    else:
        fin_of_target_before_connect_is_seen(cell)


def fin_of_target_before_connect_is_seen(cell):
    cell.daemon = cell.own_daemon()
    try:
        cell.dial()
        cell.target.wait_dialled()
        cell.daemon.signal(signal.SIGSTOP)
        cell.target.open()
        target = cell.accept()
        target.send_in_background(cell.data, then=target.finish)
        if cell.path in ("copy", "filters"):  # elsewhere it is more than a stopped daemon's kernel takes
            target.join_sender()
            target.wait_acknowledged()
        cell.daemon.signal(signal.SIGCONT)
        cell.expect_whole(target, cell.client)
    finally:
        cell.daemon.stop()


def both_fin(cell):
    first, other = cell.open()
    transfer(first, other, cell.data)
    transfer(other, first, cell.data)
    first.send(2 * KIB)
    other.send(3 * KIB)
    first.finish()
    other.finish()
    first.expect_fin(other)
    other.expect_fin(first)
    cell.expect_log("ok", whole=True)


def fin_while_blocked(cell):
    first, other = cell.open()
    first.fill()
    first.finish()
    transfer(other, first, cell.data)  # the other flow is not held up
    cell.expect_whole(first, other)


def fin_with_unread(cell):
    first, other = cell.open()
    other.send_in_background(cell.data)
    wait_readable(first, min(cell.data, 64 * KIB))
    first.finish()
    other.expect_fin(first)
    first.read(cell.data)
    other.join_sender()
    cell.expect_rest(first, other)


def rst_after_early_answer(cell):
    first, other = cell.open()
    if cell.path in ("copy", "filters"):
        other.send(cell.data)
    else:
        other.send_in_background(64 * MIB)
    wait_readable(first, 1)
    first.send(8 * KIB)
    first.wait_acknowledged()
    first.close()  # with unread bytes: the kernel sends a reset
    first.story.append("closed with unread bytes")
    other.expect_reset()
    assert other.got_bytes == first.sent_bytes, f"{other.got_bytes} of the answer's {first.sent_bytes} bytes"
    cell.expect_reset_log()


def rst_after_own_fin(cell):
    first, other = cell.open()
    transfer(first, other, cell.data)
    first.send_with_fin(4 * KIB)
    first.wait_acknowledged()
    first.reset()
    other.expect_fin(first)


def speak_until_reset(client, count):
    """Data and FIN, unless the reset is faster."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        client.send(count)
    with contextlib.suppress(OSError):
        client.finish()


def no_target(reason):
    def run(cell):
        client = cell.dial()
        if cell.first_is_client:
            speak_until_reset(client, cell.data)
        client.expect_reset()
        assert client.got_bytes == 0
        cell.expect_log(reason)
        if cell.path == "chained":
            cell.daemon.ended(cell.name, client=cell.client_text, reason="reset", ended_by="target")
        for daemon in cell.before_last():
            daemon.ended(cell.name, reason="reset", ended_by="target")
    return run


def wire_ends_without_its_mark(cell):
    """What is spoken between the first two tunnels is cut, by a FIN, on its way from `first` to `other`."""
    first, other = cell.open()
    transfer(first, other, cell.data)
    cell.cutter.cut(cell.first_is_client)
    other.expect_reset()
    assert other.got_bytes == first.sent_bytes
    noticed = cell.daemons[1 if cell.first_is_client else 0].ended(cell.name)
    assert noticed["reason"] == "truncated", f"the log says reason={noticed['reason']}, not truncated"


# --- the events with a built-in service behind a pair; the client is always first


def expect_echo(cell):
    cell.client.expect_fin(cell.client)
    cell.expect_log("ok", whole=True)


def fin_at_echo(cell):
    client = cell.dial()
    client.send(cell.before)
    client.read(cell.before)
    client.send(cell.data)
    client.finish()
    expect_echo(cell)


def rst_at_echo(cell):
    client = cell.dial()
    client.send(cell.data)
    client.read(cell.data)
    client.reset()
    cell.expect_reset_log()


def data_with_fin_at_echo(cell):
    client = cell.dial()
    client.send_with_fin(4 * KIB)
    expect_echo(cell)


def fin_before_accept(cell):
    cell.daemon = cell.own_daemon()
    try:
        cell.daemon.signal(signal.SIGSTOP)
        client = cell.dial()
        client.send(4 * KIB)
        client.finish()
        cell.daemon.signal(signal.SIGCONT)
        expect_echo(cell)
    finally:
        cell.daemon.stop()


def fin_while_echo_blocked(cell):
    client = cell.dial()
    client.fill()
    client.finish()
    expect_echo(cell)


def fin_with_unread_echo(cell):
    client = cell.dial()
    client.send(cell.data)
    wait_readable(client, cell.data)
    client.finish()
    expect_echo(cell)


def close_on_chargen(cell):
    client = cell.dial()
    client.send(100)
    wait_readable(client, 64 * KIB)
    client.close()  # with unread bytes: the kernel sends a reset
    client.story.append("closed with unread bytes")
    cell.expect_reset_log()


def name_at_its_cap(cell):
    with connect(cell.daemon.address(cell.name), CLIENT_STREAM) as holder:
        holder.send(1)
        holder.read(1)
        client = cell.dial()
        if cell.first_is_client:
            speak_until_reset(client, 4 * KIB)
        client.expect_reset()
        assert client.got_bytes == 0
        cell.expect_log("admission")


NOTHING_TO_SPLICE = "nothing is spliced before there is a target"
CONNECTS_AT_ONCE = "an internal connect succeeds or is refused at once"
EVENTS = [
    Event("FIN", fin, fin_at_echo),
    Event("RST", rst, rst_at_echo),
    Event("data then FIN in one segment", data_with_fin, data_with_fin_at_echo),
    Event("FIN before the connect completes", fin_before_connect, fin_before_accept, target=FullTarget),
    Event("both FIN at once", both_fin, why_no_pair="a built-in service only ends after its client"),
    Event("FIN while the other side is blocked", fin_while_blocked, fin_while_echo_blocked),
    Event("FIN with unread bytes", fin_with_unread, fin_with_unread_echo),
    Event("RST after an early answer", rst_after_early_answer, close_on_chargen, service="chargen"),
    Event("RST after its own FIN", rst_after_own_fin, why_no_pair="the close of a client at echo is the FIN row"),
    Event("target refuses", no_target("refused"), name_at_its_cap, target=ClosedPort, no_target=True,
          why_no_splice=NOTHING_TO_SPLICE),
    Event("target unreachable", no_target("unreachable"), why_no_pair=CONNECTS_AT_ONCE, target=Unreachable,
          no_target=True, why_no_splice=NOTHING_TO_SPLICE),
    Event("target never answers", no_target("timeout"), why_no_pair=CONNECTS_AT_ONCE, target=FullTarget,
          timeouts={"connect": "1s"}, no_target=True, why_no_splice=NOTHING_TO_SPLICE),
    Event("wire ends without its mark", wire_ends_without_its_mark, only_filters=True),
]


@pytest.mark.parametrize("workers", [1, 2])
def test_close_matrix(workers, start, directory, report):
    cells = [Cell(number, *key) for number, key in enumerate(
        (event, first, path) for event in EVENTS if not event.only_filters for first in ("client", "server")
        for path in PATHS)]
    texts = {cell: cell.tunnels() for cell in cells if not cell.not_applicable()}
    daemon = start(configuration(*texts.values(), workers=workers))
    sockets = daemon.descriptors("socket:")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        outcomes = dict(zip(texts, pool.map(lambda cell: cell.run(daemon, texts[cell], directory), texts)))

    for cell in cells:
        report(outcomes[cell][1] if cell in outcomes else f"n/a   {cell.label} {cell.not_applicable()}")
    well = sum(is_well for is_well, _ in outcomes.values())
    report(f"close matrix {well} of {len(outcomes)} ({workers} worker{'s' * (workers > 1)})")
    wrong = [row for is_well, row in outcomes.values() if not is_well]
    assert not wrong, "\n".join(wrong)
    assert daemon.descriptors("pipe:") > 0, "nothing was spliced"
    daemon.wait_sockets(sockets)


# What a wire can speak: each filter alone, and each two of them in either order.
FILTERS = ("zlib:adaptive", "zstd:adaptive", "tls", "proxy_protocol")
CHAINS = [(name,) for name in FILTERS] + list(itertools.product(FILTERS, repeat=2))


def test_close_matrix_of_filters(start, directory, report):
    """All ways to end, over all chains of one and two filters (in the sanitizers' builds of one only), near only and
    on both sides of a tunnel."""
    make_certificate(directory)
    chains = CHAINS[:len(FILTERS)] if has_doubles() else CHAINS
    cells = [FilterCell(number, *key) for number, key in enumerate(
        (event, first, chain, both) for event in EVENTS for first in ("client", "server") for chain in chains
        for both in (False, True))]
    cells = [cell for cell in cells if not cell.not_applicable()]
    for cell in cells:
        cell.begin()
    daemons = []

    def begin_daemon(number, text):
        daemons.append(start(text, name=f"hop{number}"))
        return daemons[-1]

    start_hops(cells, begin_daemon, directory, workers=2)
    sockets = [daemon.descriptors("socket:") for daemon in daemons]

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        outcomes = list(pool.map(lambda cell: cell.run(directory, directory), cells))

    wrong = [row for is_well, row in outcomes if not is_well]
    report(f"close matrix × {len(chains)} chains of filters, near only and both sides: "
           f"{len(cells) - len(wrong)} of {len(cells)}")
    assert not wrong, "\n".join(wrong)
    for daemon, count in zip(daemons, sockets):
        daemon.wait_sockets(count)
