"""Messages over a socket: a length and so many bytes. Knows nothing of what they say."""

import socket
import struct
from time import monotonic

__all__ = ["Channel", "ChannelError"]

LENGTH = struct.Struct(">Q")
CHUNK_BYTES = 2**20


class ChannelError(Exception):
    """Report that the other side has gone, or says more than it may."""


class Channel:
    """One end of a connected pair of sockets.

    Args:
        end: of the pair; closed with the channel.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._deadline: float | None = None

    def allow(self, seconds: float | None) -> None:
        """Let everything from now on, until the next call, take so long together; None is any time."""
        self._deadline = None if seconds is None else monotonic() + seconds

    def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            TimeoutError: time is up.
            ChannelError: the other side has gone.
        """
        try:
            for part in (LENGTH.pack(len(message)), message):
                self._end.settimeout(self._left())
                self._end.sendall(part)
        except (BrokenPipeError, ConnectionError) as error:
            raise ChannelError("the other side has gone") from error

    def receive(self, max_bytes: int) -> bytes:
        """Wait for a message.

        Raises:
            TimeoutError: time is up.
            ChannelError: the other side has gone, or the message has more than `max_bytes`.
        """
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        if length > max_bytes:
            raise ChannelError(f"a message of {length} bytes, above {max_bytes}")
        return bytes(self._exactly(length))

    def close(self) -> None:
        """Close the socket."""
        self._end.close()

    def _exactly(self, count: int) -> bytearray:
        received = bytearray()
        while len(received) < count:
            self._end.settimeout(self._left())
            try:
                part = self._end.recv(min(CHUNK_BYTES, count - len(received)))
            except ConnectionError as error:
                raise ChannelError("the other side has gone") from error
            if not part:
                raise ChannelError("the other side has gone")
            received += part
        return received

    def _left(self) -> float | None:
        if self._deadline is None:
            return None
        left = self._deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        return left
