"""The PROXY header by another hand: made and read here, after HAProxy's proxy-protocol.txt."""

import socket
import struct

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL = 1, 2, 3, 4, 5, 0x20
SSL_VERSION, SSL_CN, SSL_CIPHER = 0x21, 0x22, 0x23
FAMILIES = {1: (socket.AF_INET, 4), 2: (socket.AF_INET6, 16)}


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def tlv(kind, value):
    return struct.pack(">BH", kind, len(value)) + value


def version_1(source, destination):
    """Of (host, port) pairs."""
    family = "TCP6" if ":" in source[0] else "TCP4"
    return f"PROXY {family} {source[0]} {destination[0]} {source[1]} {destination[1]}\r\n".encode()


def version_2(source=None, destination=None, tlvs=b"", command=1, checksum=False):
    """Without addresses it is of an unspecified family."""
    family, block = 0, b""
    if source:
        family = 0x21 if ":" in source[0] else 0x11
        kind = socket.AF_INET6 if family == 0x21 else socket.AF_INET
        block = socket.inet_pton(kind, source[0]) + socket.inet_pton(kind, destination[0])
        block += struct.pack(">HH", source[1], destination[1])
    block += tlvs + (tlv(CRC32C, bytes(4)) if checksum else b"")
    header = SIGNATURE + struct.pack(">BBH", 0x20 | command, family, len(block)) + block
    return header[:-4] + struct.pack(">I", crc32c(header)) if checksum else header


def read_tlvs(data):
    tlvs = {}
    while data:
        kind, length = struct.unpack_from(">BH", data)
        assert 3 + length <= len(data), "a TLV is cut off"
        assert kind not in tlvs, "a TLV comes twice"
        tlvs[kind], data = data[3:3 + length], data[3 + length:]
    return tlvs


class Header:
    """Read from a socket, not one byte more. source and destination are (host, port), or None."""

    def __init__(self, sock):
        self.source = self.destination = None
        self.tlvs, self.ssl = {}, {}
        self.bytes = self._exactly(sock, 12)
        if self.bytes == SIGNATURE:
            self._read_2(sock)
        else:
            self._read_1(sock)

    @staticmethod
    def _exactly(sock, count):
        data = b""
        while len(data) < count:
            piece = sock.recv(count - len(data))
            assert piece, f"the end after {len(data)} of {count} bytes"
            data += piece
        return data

    def _read_1(self, sock):
        self.version = 1
        while not self.bytes.endswith(b"\r\n"):
            assert len(self.bytes) < 107
            self.bytes += self._exactly(sock, 1)
        words = self.bytes.decode("ascii").removesuffix("\r\n").split(" ")
        assert words[0] == "PROXY"
        self.family = words[1]
        if self.family != "UNKNOWN":
            _, _, source, destination, source_port, destination_port = words
            self.source, self.destination = (source, int(source_port)), (destination, int(destination_port))

    def _read_2(self, sock):
        self.version = 2
        head = self._exactly(sock, 4)
        command, self.family, length = struct.unpack(">BBH", head)
        block = self._exactly(sock, length)
        self.bytes += head + block
        self.is_local = command == 0x20
        assert self.is_local or command == 0x21
        if self.family >> 4 in FAMILIES:
            kind, size = FAMILIES[self.family >> 4]
            ports = struct.unpack_from(">HH", block, 2 * size)
            hosts = [socket.inet_ntop(kind, block[at:at + size]) for at in (0, size)]
            self.source, self.destination = zip(hosts, ports)
            block = block[2 * size + 4:]
        elif self.family >> 4 == 3:
            block = block[216:]
        self.tlvs = read_tlvs(block)
        if CRC32C in self.tlvs:
            zeroed = self.bytes.replace(tlv(CRC32C, self.tlvs[CRC32C]), tlv(CRC32C, bytes(4)))
            assert struct.pack(">I", crc32c(zeroed)) == self.tlvs[CRC32C], "a wrong checksum"
        if SSL in self.tlvs:
            self.ssl_client, self.ssl_verify = struct.unpack_from(">BI", self.tlvs[SSL])
            self.ssl = read_tlvs(self.tlvs[SSL][5:])
