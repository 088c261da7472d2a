import socket

import pytest

from helpers.process import refuse_network


def test_what_leaves_the_machine_is_refused_and_told():
    with refuse_network() as refused:
        with pytest.raises(ConnectionRefusedError, match="nothing may leave this machine"):
            socket.create_connection(("192.0.2.1", 80), timeout=1)
        with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"secret", ("192.0.2.1", 53))
        with pytest.raises(ConnectionRefusedError):
            socket.getaddrinfo("example.org", 443)
        with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_INET6) as sender:
            sender.connect_ex(("2001:db8::1", 80, 0, 0))
    assert refused == ["192.0.2.1", "192.0.2.1", "example.org", "2001:db8::1"]


def test_this_machine_stays_open():
    with refuse_network() as refused, socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(("localhost", server.getsockname()[1]), timeout=5):
            pass
        ours, theirs = socket.socketpair()
        ours.close(), theirs.close()
    assert refused == []


def test_the_network_comes_back():
    with pytest.raises(KeyError), refuse_network():
        raise KeyError
    with pytest.raises(OSError) as told, socket.socket() as sender:
        sender.settimeout(0.05)
        sender.connect(("192.0.2.1", 80))
    assert "nothing may leave" not in str(told.value)
