"""An NBD client that answers one request at a time: for tests that must know when each was answered."""

import socket
import struct
import time
import urllib.parse

READ, WRITE, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 3, 4, 6
REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")


class NbdError(Exception):
    """The server answered with an error."""


class Nbd:
    def __init__(self, uri, patience=60):
        """Connects to `nbd+unix:///NAME?socket=PATH`; asks again until `patience` is over."""
        parts = urllib.parse.urlparse(uri)
        self.path = urllib.parse.parse_qs(parts.query)["socket"][0]
        self.name = parts.path.lstrip("/").encode()
        self.patience = patience
        self.handle = 0
        deadline = time.monotonic() + patience
        while True:
            try:
                self.connect()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def connect(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(self.patience)
        try:
            self.socket.connect(self.path)
            magic, option, _ = struct.unpack(">QQH", self.take(18))
            assert (magic, option) == (0x4E42444D41474943, 0x49484156454F5054)
            # Fixed newstyle, no zeroes after the export's size; then the export by its name.
            self.socket.sendall(struct.pack(">IQII", 3, 0x49484156454F5054, 1, len(self.name)) + self.name)
            self.size, self.flags = struct.unpack(">QH", self.take(10))
        except OSError:
            self.socket.close()
            raise

    def take(self, count):
        parts, left = [], count
        while left:
            part = self.socket.recv(left)
            if not part:
                raise ConnectionError("the server closed the connection")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def ask(self, kind, offset, length, data=b""):
        self.handle += 1
        self.socket.sendall(REQUEST.pack(0x25609513, 0, kind, self.handle, offset, length) + data)
        magic, error, handle = REPLY.unpack(self.take(16))
        assert (magic, handle) == (0x67446698, self.handle)
        if error:
            raise NbdError(f"request {kind} of {length} bytes at {offset}: error {error}")
        return self.take(length) if kind == READ else b""

    def read(self, offset, length):
        return self.ask(READ, offset, length)

    def write(self, offset, data):
        self.ask(WRITE, offset, len(data), data)

    def trim(self, offset, length):
        self.ask(TRIM, offset, length)

    def write_zeroes(self, offset, length):
        self.ask(WRITE_ZEROES, offset, length)

    def close(self):
        self.socket.close()
