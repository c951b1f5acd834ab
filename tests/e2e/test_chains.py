"""Filters between two tunnels: every byte, every kind of end, and no waiting."""

import contextlib
import itertools
import socket
import statistics
import subprocess
import sys
import threading
import time
import zlib

import pytest

from chains import Cutter, facing, has_doubles, is_marked, make_certificate, over_a_pair, over_sockets, stuttering
from daemon import DEADLINE, configuration, section, tunnel
from peers import CLIENT_STREAM, KIB, MIB, TARGET_STREAM, Target, connect, transfer
from programs import peer as note_peer, program

pytestmark = pytest.mark.sanitize

PLAIN = [("zlib",), ("zstd",), ("zlib", "zlib"), ("zlib:adaptive", "zstd:adaptive"), ("tls", "zlib"),
         ("proxy_protocol", "tls", "zstd")]
CHAINS = list(PLAIN)
# In a test build the same once more, cut at random.
if has_doubles():
    CHAINS += [stuttering(chain) for chain in PLAIN]
    CHAINS += [("hoard", "zlib", "hoard"), ("stutter:one",), ("hoard",)]

SIZES = (0, 1, 10 * KIB, 300 * KIB, 2 * MIB)


def chain_name(chain):
    return "+".join(chain)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certificates")
    make_certificate(directory)
    return directory


@pytest.fixture(params=["sockets", "pair"])
def through(request, start, certificates):
    """through(chain, target) gives where to connect, and the daemon whose tunnel "a" is there."""
    def make(chain, target, **options):
        if request.param == "sockets":
            return over_sockets(start, chain, target, certificates=certificates, **options)[0]
        return over_a_pair(start, chain, target, certificates=certificates, **options)
    return make


def talk(daemon, target, sizes):
    """Both sides send `sizes` bytes at the same time and end; each gets all of the other."""
    up, down = sizes
    client = connect(daemon.address("a"))
    client.send_in_background(up, then=client.finish)
    peer = target.accept()
    peer.send_in_background(down, then=peer.finish)
    peer.expect_fin(client)
    client.expect_fin(peer)
    client.close()
    peer.close()


@pytest.mark.parametrize("chain, workers", [(chain, 2) for chain in CHAINS] + [(chain, 1) for chain in PLAIN],
                         ids=lambda value: value if isinstance(value, int) else chain_name(value))
def test_all_bytes_arrive(through, chain, workers):
    with Target() as target:
        daemon = through(chain, target.text, workers=workers)
        for size in SIZES:
            talk(daemon, target, (size, SIZES[-1] - size))
        assert all(line["reason"] == "ok" for line in daemon.ended("a", len(SIZES)))


def open_both(daemon, target):
    """A client and its target, and a byte between them."""
    client = connect(daemon.address("a"))
    client.send(1)
    peer = target.accept()
    peer.read(1)
    return client, peer


@pytest.mark.parametrize("chain", CHAINS, ids=chain_name)
def test_half_close(through, chain):
    """Each flow ends on its own; the other goes on."""
    with Target() as target:
        daemon = through(chain, target.text)
        for client_first in (True, False):
            client, peer = open_both(daemon, target)
            first, other = (client, peer) if client_first else (peer, client)
            transfer(first, other, 100 * KIB)
            first.finish()
            other.expect_fin(first)
            first.expect_quiet()
            transfer(other, first, 300 * KIB)
            first.expect_quiet()
            other.finish()
            first.expect_fin(other)
            client.close()
            peer.close()


@pytest.mark.parametrize("chain", CHAINS, ids=chain_name)
def test_reset(through, chain):
    with Target() as target:
        daemon = through(chain, target.text)
        for client_first in (True, False):
            client, peer = open_both(daemon, target)
            first, other = (client, peer) if client_first else (peer, client)
            transfer(first, other, 100 * KIB)
            first.reset()
            other.expect_reset()
            assert other.got_bytes == first.sent_bytes
            client.close()
            peer.close()


@pytest.mark.parametrize("towards_target", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("chain", [chain for chain in CHAINS if is_marked(chain)], ids=chain_name)
def test_a_cut_wire_is_a_reset(start, certificates, chain, towards_target):
    """A FIN without the filters' own end mark is no end of what they carry."""
    with Target() as target:
        behind = start(configuration(*facing(chain, target.text, near=True, certificates=certificates)))
        cutter = Cutter(behind.address("a"))
        front = start(configuration(*facing(chain, cutter.text, far=True, certificates=certificates)))
        client = connect(front.address("a"))
        transfer_start = 50 * KIB
        client.send_in_background(transfer_start)
        peer = target.accept()
        peer.read(transfer_start)
        transfer(peer, client, transfer_start)
        cutter.cut(towards_target)
        other = peer if towards_target else client
        other.expect_reset()
        assert other.got_bytes == transfer_start
        line = (behind if towards_target else front).ended("a")
        assert line["reason"] == "truncated" and "end" in line["why"], line
        for end in (client, peer, cutter):
            end.close()


@pytest.mark.parametrize("chain", [("zlib",), ("zstd",), ("tls", "zlib")], ids=chain_name)
def test_who_writes_a_byte_is_answered_at_once(through, chain):
    """A conversation in single bytes through the chain: nothing waits for more, in no filter."""
    daemon = through(chain, "internal:echo")
    client = connect(daemon.address("a"), CLIENT_STREAM)
    seconds = []
    for _ in range(200):
        began = time.monotonic()
        client.send(1)
        client.read(1)
        seconds.append(time.monotonic() - began)
    assert statistics.median(seconds) < 0.025, f"{1000 * statistics.median(seconds):.1f} ms for each answer"
    client.finish()
    client.expect_fin(client)
    client.close()


def received(sock):
    """All until the end; raises ConnectionResetError at a reset."""
    pieces = []
    while piece := sock.recv(256 * KIB):
        pieces.append(piece)
    return b"".join(pieces)


def raw(address):
    sock = socket.create_connection(address, timeout=DEADLINE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class TestPythonsZlib:
    """Python's zlib at the other end of the wire, as client and as target."""

    @pytest.mark.parametrize("size", [0, 1, 100 * KIB, 3 * MIB])
    def test_as_client(self, start_data, size):
        with Target() as target:
            daemon = start_data(configuration(tunnel("a", target.text, accept_filters="zlib")))
            with raw(daemon.address("a")) as client:
                text = bytes(CLIENT_STREAM.at(0, min(size, MIB))) * (size // MIB or 1)
                client.sendall(zlib.compress(text))
                client.shutdown(socket.SHUT_WR)
                peer = target.accept(expects=None)
                peer.send_in_background(MIB, then=peer.finish)
                assert received(peer.sock) == text
                unpacker = zlib.decompressobj()
                assert unpacker.decompress(received(client)) == TARGET_STREAM.at(0, MIB)
                assert unpacker.eof and not unpacker.unused_data
                peer.close()

    def test_as_target(self, start_data):
        with Target() as target:
            daemon = start_data(configuration(tunnel("a", target.text, connect_filters="zlib")))
            with connect(daemon.address("a")) as client:
                client.send_in_background(MIB, then=client.finish)
                peer = target.accept(expects=None)
                unpacker = zlib.decompressobj()
                assert unpacker.decompress(received(peer.sock)) == CLIENT_STREAM.at(0, MIB)
                assert unpacker.eof and not unpacker.unused_data
                peer.sock.sendall(zlib.compress(TARGET_STREAM.at(0, MIB)))
                peer.finish()
                assert client.read_to_end() == "FIN" and client.got_bytes == MIB
                peer.close()
        note_peer("Python's zlib", sys.executable, "-c", "import zlib; print(zlib.ZLIB_RUNTIME_VERSION)",
                  command="zlib.compressobj and zlib.decompressobj over a socket, both roles")

    def test_dialogue(self, start_data):
        """What Python flushes arrives, and what is flushed to it can be read, message by message."""
        daemon = start_data(configuration(tunnel("a", "internal:echo", accept_filters="zlib")))
        packer, unpacker = zlib.compressobj(), zlib.decompressobj()
        with raw(daemon.address("a")) as client:
            for number in range(100):
                message = b"message %d\n" % number
                client.sendall(packer.compress(message) + packer.flush(zlib.Z_SYNC_FLUSH))
                answer = b""
                while len(answer) < len(message):
                    answer += unpacker.decompress(client.recv(4096))
                assert answer == message
            client.sendall(packer.flush())
            client.shutdown(socket.SHUT_WR)
            assert unpacker.decompress(received(client)) == b"" and unpacker.eof

    @pytest.mark.parametrize("what, reason, told", [
        ("no trailer", "truncated", "without its end mark"),
        ("nothing at all", "truncated", "without its end mark"),
        ("garbage", "protocol", "the bytes are no zlib stream; does the other end compress the same way?"),
        ("a damaged byte", "protocol", "zlib: "),
        ("bytes behind the trailer", "protocol", "behind the end"),
    ])
    def test_a_bad_stream_is_a_reset_on_both_sides(self, start, what, reason, told):
        packed = zlib.compress(bytes(CLIENT_STREAM.at(0, 20 * KIB)))
        stream = {
            "no trailer": packed[:-1],
            "nothing at all": b"",
            "garbage": b"GET / HTTP/1.1\r\n\r\n",
            "a damaged byte": packed[:5000] + bytes([packed[5000] ^ 1]) + packed[5001:],
            "bytes behind the trailer": packed + b"x",
        }[what]
        with Target() as target:
            daemon = start(configuration(tunnel("a", target.text, accept_filters="zlib")))
            with raw(daemon.address("a")) as client:
                client.sendall(stream)
                with contextlib.suppress(OSError):  # the reset may be faster
                    client.shutdown(socket.SHUT_WR)
                peer = target.accept()
                if what == "a damaged byte":
                    peer.expects = None  # the damage shows at the checksum only
                peer.expect_reset()
                with pytest.raises(ConnectionResetError):
                    received(client)
                line = daemon.ended("a")
                assert line["reason"] == reason and told in line["why"], line
                peer.close()

    def test_a_bomb_costs_no_memory(self, start):
        """256 MiB of zeros in a quarter of a MiB."""
        packer = zlib.compressobj(9)
        bomb = b"".join(packer.compress(bytes(MIB)) for _ in range(256)) + packer.flush()
        with Target() as target:
            daemon = start(configuration(tunnel("a", target.text, accept_filters="zlib")))
            with raw(daemon.address("a")) as client:
                before = daemon.resident_bytes()
                client.sendall(bomb)
                client.shutdown(socket.SHUT_WR)
                peer = target.accept(expects=None)
                most = before
                for _ in range(16):
                    peer.read(16 * MIB)
                    most = max(most, daemon.resident_bytes())
                peer.expect_fin()
                # A test build's sanitizer keeps for a while what was freed.
                assert has_doubles() or most - before < 8 * MIB, f"{(most - before) / MIB:.1f} MiB more"
                peer.close()


def zeros(kind, count):
    """A stream of so many MiB of zero bytes, in pieces."""
    if kind == "zstd":
        import zstandard
        packer = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(
            compression_level=1, window_log=18, write_checksum=1)).compressobj()
        yield from (packer.compress(bytes(MIB)) for _ in range(count))
        yield packer.flush()
        return
    packer = zlib.compressobj(9, wbits=-15)
    piece = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)  # that stands for itself
    yield b"\x78\x9c"
    yield from itertools.repeat(piece, count)
    yield packer.flush() + (count * MIB % 65521 << 16 | 1).to_bytes(4, "big")  # RFC 1950 section 8.2: Adler-32


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_ten_gib_of_zeros_pass_in_constant_memory(start, kind, report):
    """More than 32 bits can count. In a test build, whose memory is another's, less."""
    count = 256 if has_doubles() else 10 * 1024
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text, accept_filters=kind)))
        with raw(daemon.address("a")) as client:
            before = daemon.resident_bytes()

            def send():
                for piece in zeros(kind, count):
                    client.sendall(piece)
                client.shutdown(socket.SHUT_WR)
            thread = threading.Thread(target=send, daemon=True)
            thread.start()
            with target.accept(expects=None) as peer:
                block, got, most = bytes(MIB), 0, before
                while piece := peer.sock.recv(MIB):
                    assert block.startswith(piece)
                    if got // (64 * MIB) != (got + len(piece)) // (64 * MIB):
                        most = max(most, daemon.resident_bytes())
                    got += len(piece)
            thread.join(DEADLINE)
            assert got == count * MIB
            report(f"{count} MiB of zeros through {kind}: {(most - before) / MIB:.1f} MiB more memory at most")
            assert has_doubles() or most - before < 8 * MIB
        assert daemon.ended("a")["reason"] == "ok"


def test_pythons_zstandard(start_data):
    """The same with zstd, in and out, with and without `adaptive`."""
    import zstandard
    text = 'zstd "adaptive" { adaptive = "true" }\n'
    payload = bytes(CLIENT_STREAM.at(0, MIB)) + b"pipe and gate " * 100000
    with Target() as target:
        daemon = start_data(configuration(text, tunnel("a", target.text, accept_filters="zstd"),
                                     tunnel("b", target.text, accept_filters="zstd:adaptive")))
        for name in ("a", "b"):
            with raw(daemon.address(name)) as client:
                packer = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(
                    compression_level=3, window_log=18, write_checksum=1))
                client.sendall(packer.compress(payload))
                client.shutdown(socket.SHUT_WR)
                peer = target.accept(expects=None)
                assert received(peer.sock) == payload
                peer.sock.sendall(payload)
                peer.finish()
                reader = zstandard.ZstdDecompressor().stream_reader(received(client), read_across_frames=True)
                assert reader.read() == payload
                peer.close()
    note_peer("Python's zstandard", sys.executable, "-c", "import zstandard; print(zstandard.__version__)",
              command="zstandard.ZstdCompressor and ZstdDecompressor over a socket")


def zstd_at(sock, directory, payload):
    """The program zstd with both flows of a socket: says the payload, and gives what it hears."""
    given, got = directory / "given", directory / "got"
    given.write_bytes(payload)
    with open(given, "rb") as source, open(got, "wb") as sink:
        reader = subprocess.Popen([program("zstd"), "-q", "-d", "-c"], stdin=sock, stdout=sink)
        try:
            # A stream of unknown length gets a window of 2 MiB, if zstd is not told.
            subprocess.run([program("zstd"), "-q", "-c", "--check", "--zstd=wlog=18"], stdin=source, stdout=sock, check=True)
            sock.shutdown(socket.SHUT_WR)
            assert reader.wait(DEADLINE) == 0
        finally:
            reader.kill()
            reader.wait()
    return got.read_bytes()


@pytest.mark.parametrize("adaptive", ["false", "true"])
def test_zstd_of_the_command_line(start_data, directory, adaptive):
    """As client and as target."""
    payload = bytes(CLIENT_STREAM.at(0, MIB)) + b"pipe and gate " * 100000
    with Target() as target:
        daemon = start_data(configuration(section("zstd", "z", adaptive=adaptive), tunnel("near", "internal:echo", accept_filters=["zstd:z"]),
                                     tunnel("far", target.text, connect_filters=["zstd:z"])))
        with raw(daemon.address("near")) as client:
            client.settimeout(None)  # its descriptor is for others, who do not wait by themselves
            assert zstd_at(client, directory, payload) == payload
        with raw(daemon.address("far")) as client:
            client.sendall(payload)
            client.shutdown(socket.SHUT_WR)
            with target.accept(expects=None) as peer:
                peer.sock.settimeout(None)
                assert zstd_at(peer.sock, directory, payload[::-1]) == payload
            assert received(client) == payload[::-1]
    note_peer("zstd", "zstd", "--version", command="zstd -c > SOCKET, zstd -d -c < SOCKET, both roles")


if has_doubles():
    def test_a_failing_filter_resets_both_sides(through):
        with Target() as target:
            daemon = through(("stutter:one", "fail_after:few", "zlib"), target.text)
            client = connect(daemon.address("a"))
            client.send(1)
            peer = target.accept()
            client.send_in_background(200 * KIB)
            peer.expect_reset()
            client.expect_reset()
            client.close()
            peer.close()
