"""The two ends of a tunnel as the tests play them: sockets that know what they sent and check what they get."""

import contextlib
import fcntl
import random
import select
import socket
import ssl
import struct
import termios
import threading

from daemon import DEADLINE, wait_until

KIB, MIB = 1024, 1024 * 1024


class Stream:
    """Endless reproducible bytes. Its period is a prime, so no shift by a buffer's size goes unseen."""

    PERIOD = 1048583

    def __init__(self, seed):
        block = random.Random(seed).randbytes(self.PERIOD)
        self._twice = memoryview(block + block)

    def at(self, position, count):
        assert count <= self.PERIOD
        start = position % self.PERIOD
        return self._twice[start:start + count]


CLIENT_STREAM, TARGET_STREAM = Stream("client"), Stream("target")


def size_text(count):
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if count >= unit:
            return f"{count / unit:g} {name}" if count % unit == 0 else f"{count / unit:.2f} {name}"
    return f"{count} B"


class Peer:
    """A connected socket. Sends the next bytes of `sends`, compares each byte it gets with `expects`
    (None: with nothing), and keeps the story of what it did and saw."""

    def __init__(self, sock, sends, expects):
        sock.settimeout(DEADLINE)
        self.sock, self.sends, self.expects = sock, sends, expects
        self.sent_bytes = self.got_bytes = 0
        self.ending = None  # how its incoming flow ended: "FIN" or "RST"
        self.was_reset = False  # seen by reading or by writing, whichever came first
        self.story = []
        self._sender, self._sender_error = None, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- sending

    def send(self, count):
        end = self.sent_bytes + count
        try:
            while self.sent_bytes < end:
                piece = self.sends.at(self.sent_bytes, min(end - self.sent_bytes, 256 * KIB))
                self.sent_bytes += self.sock.send(piece)
        except (ConnectionResetError, BrokenPipeError):
            self.was_reset = True
            raise
        self._tell("sent", count)

    def send_urgent(self):
        """The next byte, as urgent: as a telnet sends its interrupt."""
        self.sent_bytes += self.sock.send(self.sends.at(self.sent_bytes, 1), socket.MSG_OOB)
        self.story.append("sent an urgent byte")

    def send_in_background(self, count, then=None):
        def run():
            try:
                self.send(count)
                if then:
                    then()
            except OSError as error:
                self._sender_error = error
        self._sender = threading.Thread(target=run)
        self._sender.start()

    def join_sender(self):
        if not self._sender:
            return
        self._sender.join(2 * DEADLINE)
        assert not self._sender.is_alive(), "the sender is stuck"
        error, self._sender, self._sender_error = self._sender_error, None, None
        if error:
            raise error

    def fill(self, quiet=0.3):
        """Sends until nothing has been taken for `quiet` seconds; returns how much was taken."""
        start = self.sent_bytes
        self.sock.setblocking(False)
        poll = select.poll()
        poll.register(self.sock, select.POLLOUT)
        while poll.poll(quiet * 1000):
            with contextlib.suppress(BlockingIOError):
                self.sent_bytes += self.sock.send(self.sends.at(self.sent_bytes, 256 * KIB))
        self.sock.settimeout(DEADLINE)
        self._tell("filled", self.sent_bytes - start)
        return self.sent_bytes - start

    def finish(self):
        self.sock.shutdown(socket.SHUT_WR)
        self.story.append("FIN")

    def send_with_fin(self, count):
        """The last bytes and the FIN in one segment."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        self.send(count)
        self.finish()

    def unacknowledged(self):
        """Bytes sent and not yet taken by the other kernel."""
        return struct.unpack("i", fcntl.ioctl(self.sock, termios.TIOCOUTQ, b"\0" * 4))[0]

    def wait_acknowledged(self):
        wait_until(lambda: self.unacknowledged() == 0, "what was sent to be acknowledged")

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self.story.append("RST")

    # --- receiving

    def unread(self):
        return struct.unpack("i", fcntl.ioctl(self.sock, termios.FIONREAD, b"\0" * 4))[0]

    def receive(self, most):
        """Bytes received; 0 at an end, of which `ending` then tells the kind."""
        try:
            piece = self.sock.recv(most)
        except (ConnectionResetError, BrokenPipeError):
            self.was_reset = True
            piece = b""
        except TimeoutError:
            raise AssertionError(f"nothing received for {DEADLINE:g} s after {self.got_bytes} bytes") from None
        if not piece:
            self.ending = "RST" if self.was_reset else "FIN"
        elif self.expects:
            assert piece == self.expects.at(self.got_bytes, len(piece)), (
                f"wrong bytes between {self.got_bytes} and {self.got_bytes + len(piece)}")
        self.got_bytes += len(piece)
        return len(piece)

    def read(self, count):
        """Exactly that many."""
        end = self.got_bytes + count
        while self.got_bytes < end:
            if not self.receive(min(end - self.got_bytes, 256 * KIB)):
                raise AssertionError(f"{self.ending} after {self.got_bytes} bytes, {end} were to come")
        self._tell("got", count)

    def read_to_end(self):
        """Everything until the end, which is returned: "FIN" or "RST"."""
        start = self.got_bytes
        while self.receive(256 * KIB):
            pass
        if self.got_bytes > start:
            self._tell("got", self.got_bytes - start)
        self.story.append(f"saw {self.ending}")
        return self.ending

    def expect_fin(self, source=None):
        """A FIN; behind every byte that `source` sent, if that is given."""
        assert self.read_to_end() == "FIN", f"a reset instead of a FIN after {self.got_bytes} bytes"
        if source:
            source.join_sender()
            assert self.got_bytes == source.sent_bytes, f"{self.got_bytes} bytes and a FIN, {source.sent_bytes} were sent"

    def expect_reset(self):
        """A reset, met by reading or, if that came first, by the sender."""
        ending = self.read_to_end()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            self.join_sender()
        assert ending == "RST" or self.was_reset, f"a FIN instead of a reset after {self.got_bytes} bytes"

    def expect_quiet(self):
        """No byte and no end is there now."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | select.POLLRDHUP)
        assert not poll.poll(0), "something arrived where nothing was to come yet"

    # --- the rest

    def _tell(self, verb, count):
        self.story.append(f"{verb} {size_text(count)}")

    def close(self):
        self.sock.close()
        if self._sender:
            self._sender.join(2 * DEADLINE)


def connect(address, expects=TARGET_STREAM, receive_bytes=None):
    """A client of the tunnel that listens there."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    peer = Peer(sock, CLIENT_STREAM, expects)
    try:
        sock.connect(address)
    except ConnectionResetError:  # accepted, and reset before we looked
        peer.was_reset = True
    except BaseException:
        sock.close()
        raise
    return peer


class Target:
    """A listening target; each accepted connection is a Peer."""

    def __init__(self, backlog=128, host="127.0.0.1", port=0, receive_bytes=None, path=None):
        family = socket.AF_UNIX if path else socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        if receive_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.sock.bind(path or (host, port))
        self.sock.listen(backlog)
        self.sock.settimeout(DEADLINE)
        self.port = 0 if path else self.sock.getsockname()[1]
        self.text = f"unix:{path}" if path else f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def accept(self, expects=CLIENT_STREAM):
        try:
            return Peer(self.sock.accept()[0], TARGET_STREAM, expects)
        except TimeoutError:
            raise AssertionError(f"no connection at the target within {DEADLINE:g} s") from None

    def expect_nobody(self):
        assert not select.select([self.sock], [], [], 0)[0], "somebody connected to the target"

    def close(self):
        self.sock.close()


class FullTarget(Target):
    """A target whose kernel drops each SYN until `open` is called: it never answers."""

    def __init__(self, host="127.0.0.1"):
        super().__init__(backlog=0, host=host)
        # With a backlog of 0 Linux queues one connection and drops what comes after it.
        self._filler = socket.create_connection((host if ":" in host else "127.0.0.1", self.port), timeout=DEADLINE)

    def wait_dialled(self):
        wait_until(lambda: "SYN_SENT" in tcp_states(self.port), "the daemon's SYN")

    def open(self):
        self.sock.accept()[0].close()
        self._filler.close()

    def close(self):
        self._filler.close()
        super().close()


class ClosedPort:
    """A port that is ours and refuses."""

    def __init__(self, host="127.0.0.1"):
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.sock.bind((host, 0))
        self.port = self.sock.getsockname()[1]
        self.text = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()


class EchoTarget(Target):
    """A target that sends back what it gets, from one thread, whatever the number of connections.
    `connections` counts what was accepted."""

    def __init__(self, **options):
        super().__init__(backlog=4096, **options)
        self.connections = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        poll = select.epoll()
        self.sock.setblocking(False)
        poll.register(self.sock, select.EPOLLIN)
        open_sockets = {}
        while not self._stopping:
            for number, _ in poll.poll(0.05):
                if number == self.sock.fileno():
                    with contextlib.suppress(BlockingIOError, OSError):
                        while True:
                            peer = self.sock.accept()[0]
                            peer.settimeout(DEADLINE)
                            open_sockets[peer.fileno()] = peer
                            poll.register(peer, select.EPOLLIN)
                            self.connections += 1
                else:
                    self._echo(number, open_sockets, poll)
        for peer in open_sockets.values():
            peer.close()

    @staticmethod
    def _echo(number, open_sockets, poll):
        peer = open_sockets[number]
        try:
            piece = peer.recv(256 * KIB)
            if piece:
                peer.sendall(piece)
                return
        except OSError:
            pass
        poll.unregister(number)
        open_sockets.pop(number).close()

    def close(self):
        self._stopping = True
        self._thread.join(DEADLINE)
        super().close()


TCP_STATES = {1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT",
              7: "CLOSE", 8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN", 11: "CLOSING"}


def tcp_states(remote_port):
    """The states of all IPv4 sockets of this machine whose peer has that port."""
    states = []
    with open("/proc/net/tcp") as table:
        next(table)
        for row in table:
            fields = row.split()
            if int(fields[2].rpartition(":")[2], 16) == remote_port:
                states.append(TCP_STATES.get(int(fields[3], 16), "?"))
    return states


def transfer(sender, receiver, count):
    """Bytes from one peer to the other, both working at the same time."""
    sender.send_in_background(count)
    receiver.read(count)
    sender.join_sender()


def wait_readable(peer, least):
    wait_until(lambda: peer.unread() >= least, f"{least} unread bytes")


def is_closed(address):
    """Whether nobody listens there; who listens sees a connection that ends at once."""
    try:
        connect(address).close()
        return False
    except (ConnectionRefusedError, FileNotFoundError):
        return True


def is_refused(address):
    """Whether connecting there fails, or is reset before any byte comes."""
    try:
        with connect(address, expects=None) as client:
            return client.read_to_end() == "RST"
    except OSError:
        return True


def echoes(address, count=1000):
    """Whether an echo answers there; leaves nothing open."""
    with connect(address, expects=CLIENT_STREAM) as client:
        transfer(client, client, count)
        client.finish()
        client.expect_fin()
    return True


def echo_at_random(clients, is_over):
    """Keeps every client sending to an echo and receiving, pieces of random size, until is_over(); then all end
    well. Returns how many bytes came back."""
    sizes = random.Random(4)
    poll = select.epoll()
    by_number = {client.sock.fileno(): client for client in clients}
    for number, client in by_number.items():
        client.sock.setblocking(False)
        poll.register(number, select.EPOLLIN | select.EPOLLOUT)
    while not is_over():
        for number, events in poll.poll(DEADLINE):
            client = by_number[number]
            assert not events & (select.EPOLLERR | select.EPOLLHUP), f"an end after {client.got_bytes} bytes"
            with contextlib.suppress(BlockingIOError):
                size = sizes.choice((1, 7, 64, 1460, 4096, 70_000, 256 * KIB))
                if events & select.EPOLLOUT and client.sent_bytes - client.got_bytes < 1 * MIB:
                    client.sent_bytes += client.sock.send(client.sends.at(client.sent_bytes, size))
                if events & select.EPOLLIN:
                    assert client.receive(size), f"{client.ending} after {client.got_bytes} bytes"
    for client in clients:
        client.sock.settimeout(DEADLINE)
        client.finish()
    for client in clients:
        client.expect_fin(client)
    return sum(client.got_bytes for client in clients)


def client_hello(name=None, protocols=(), **settings):
    """What Python's TLS says first; settings of its context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(protocols)
    for setting, value in settings.items():
        setattr(context, setting, value)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()
