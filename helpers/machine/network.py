"""Network: whether the hub can be reached, and how to refuse every connection that would leave this machine."""

import re
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

NETWORK_EVENTS = (  # https://docs.python.org/3/library/audit_events.html
    *("socket.connect", "socket.sendto", "socket.sendmsg"),
    *("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"),
)


@contextmanager
def refuse_network() -> Iterator[list[str]]:
    """Refuse every connection that leaves this machine, and every look-up of a name, as long as a `with` block takes.

    Yields the list of what was refused. Python tells an audit hook of each socket call, whichever library makes it; code
    that talks to the network without Python's sockets, or in another process, is not seen. This machine's own addresses
    and Unix sockets stay open.
    """
    refused: list[str] = []
    watching = threading.Event()  # a hook cannot be taken off, but it can go blind
    watching.set()

    def hook(event: str, args: tuple) -> None:
        if not watching.is_set() or event not in NETWORK_EVENTS:
            return
        target = args[0] if event.startswith("socket.get") else args[1]
        host = target[0] if isinstance(target, tuple) else target
        unix = not isinstance(target, tuple) and not event.startswith("socket.get")
        host = host.decode(errors="replace") if isinstance(host, bytes) else str(host)
        if unix or host in ("localhost", "::1", "", "None") or re.fullmatch(r"127(\.\d+){3}", host):
            return
        refused.append(host)
        raise ConnectionRefusedError(f"{event} to {host} was refused: nothing may leave this machine here.")

    sys.addaudithook(hook)
    try:
        yield refused
    finally:
        watching.clear()


def online(seconds: float = 5.0) -> bool:
    """Tell within so many seconds whether the hub can be reached; it is not asked where HF_HUB_OFFLINE says so."""
    from huggingface_hub import constants

    reached = threading.Event()

    def knock() -> None:
        try:
            urllib.request.urlopen(constants.ENDPOINT, timeout=seconds).close()
        except urllib.error.HTTPError:
            pass  # it is there, and said no
        except OSError:
            return
        reached.set()

    if not constants.HF_HUB_OFFLINE:
        thread = threading.Thread(target=knock, daemon=True)  # looking up a name can take longer than any timeout
        thread.start()
        thread.join(seconds)
    return reached.is_set()
