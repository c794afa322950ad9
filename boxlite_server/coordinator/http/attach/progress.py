"""How much of a command's output an attached client has received."""

from __future__ import annotations

from collections import deque

from ...._gen import worker_pb2 as pb

MAX_PLACES = 1000


class Progress:
    """Counts the bytes of output that a client was sent, and those that it has acknowledged.

    A place is a count of bytes and the log position that corresponds to it; the two correspond only where no
    unfinished character is held back. When the client comes back, reading starts at the last acknowledged place,
    and `skip` bytes from there are not sent again.
    """

    def __init__(self, delivered: pb.Delivered, received: int | None) -> None:
        """`received`: bytes that the client says it has, which overrides `delivered`; None if it does not say."""
        self.sent = delivered.bytes if received is None else received
        place = (delivered.bytes_at_position, delivered.position)
        if self.sent < place[0]:
            place = (0, 0)
        self.start_position = place[1]
        self.skip = self.sent - place[0]
        self._acknowledged = delivered
        self._places = deque([place])

    def passes(self, data: bytes) -> bytes:
        """Return the part of `data` that the client does not have yet, and count it as sent."""
        rest = data[self.skip :]
        self.skip -= len(data) - len(rest)
        self.sent += len(rest)
        return rest

    def lost(self, byte_count: int) -> int:
        """Return how many of `byte_count` lost bytes the client never had. They count as sent, since it is told."""
        missed = max(byte_count - self.skip, 0)
        self.skip = max(self.skip - byte_count, 0)
        self.sent += missed
        return missed

    def gap(self, position: int) -> None:
        """Start a new log at `position`, after the loss of output of an unknown size. How much of the new log the
        client has is known only if a place in it was acknowledged."""
        if not self._places[0][0]:
            self.skip = 0
            self._places = deque([(self.sent, position)])

    def place(self, position: int) -> None:
        """Note that all output before `position` is sent, and nothing after it."""
        if self.skip:
            return
        if len(self._places) == MAX_PLACES:
            self._places.pop()  # fewer suffice: output between a place and an acknowledged count is skipped
        self._places.append((self.sent, position))

    def acknowledge(self, count: int) -> pb.Delivered:
        """Note that the client has `count` bytes, and return everything it has acknowledged."""
        count = min(count, self.sent)
        # While bytes are still skipped, only the client says that the output is that long.
        if count > self._acknowledged.bytes and not self.skip:
            while len(self._places) > 1 and self._places[1][0] <= count:
                self._places.popleft()
            at_position, position = self._places[0]
            self._acknowledged = pb.Delivered(bytes=count, position=position, bytes_at_position=at_position)
        return self._acknowledged
