"""How much of a command's output an attached client has."""

from __future__ import annotations

from collections import deque

from ...._gen import worker_pb2 as pb

MAX_PLACES = 1000


class Progress:
    """How far a client has been served, in bytes of output, and what of it has certainly arrived.

    A position in the log fits a count of bytes only where no beginning of a character is held back. The last
    such place that the client has confirmed is where reading starts when it comes back; `skip` bytes from
    there it has already.
    """

    def __init__(self, delivered: pb.Delivered, received: int | None) -> None:
        """`received`: what the client itself says it has; it knows better than `delivered`."""
        self.sent = delivered.bytes if received is None else received
        place = (delivered.bytes_at_position, delivered.position)
        if self.sent < place[0]:
            place = (0, 0)
        self.start_position = place[1]
        self.skip = self.sent - place[0]
        self._confirmed = delivered
        self._places = deque([place])

    def passes(self, data: bytes) -> bytes:
        """What of the output the client does not have yet; counted as sent."""
        rest = data[self.skip :]
        self.skip -= len(data) - len(rest)
        self.sent += len(rest)
        return rest

    def lost(self, byte_count: int) -> int:
        """Output is gone; how much of it the client never had. Counted as sent: it is told."""
        missed = max(byte_count - self.skip, 0)
        self.skip = max(self.skip - byte_count, 0)
        self.sent += missed
        return missed

    def gap(self, position: int) -> None:
        """Output of an unknown size is gone, and a new log begins. What of it the client has is only known if a
        place in it was confirmed."""
        if not self._places[0][0]:
            self.skip = 0
            self._places = deque([(self.sent, position)])

    def place(self, position: int) -> None:
        """All output before `position` is sent, and nothing behind it."""
        if self.skip:
            return
        if len(self._places) == MAX_PLACES:
            self._places.pop()  # fewer will do: what lies between a place and what is confirmed is skipped
        self._places.append((self.sent, position))

    def confirm(self, count: int) -> pb.Delivered:
        """The client has `count` bytes; all that is known of what it has."""
        count = min(count, self.sent)
        # Before the skipped part is over, it is only the client's word that there is so much.
        if count > self._confirmed.bytes and not self.skip:
            while len(self._places) > 1 and self._places[1][0] <= count:
                self._places.popleft()
            at_position, position = self._places[0]
            self._confirmed = pb.Delivered(bytes=count, position=position, bytes_at_position=at_position)
        return self._confirmed
