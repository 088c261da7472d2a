import http.server
import socket
import threading
import time

import pytest
import torch
from huggingface_hub import constants

from helpers.machine.process import PeakMemory, online, refuse_network


@pytest.fixture
def hub(monkeypatch):
    """A server in the hub's place, that answers nothing but 404, after as long as it is told."""

    class Answer(http.server.BaseHTTPRequestHandler):
        delay = 0.0

        def do_GET(self):
            time.sleep(self.delay)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield Answer
    server.shutdown()
    server.server_close()


def test_a_hub_that_answers_is_online_whatever_it_says(hub):
    assert online()


def test_nobody_waits_long_for_a_hub_that_does_not_answer(hub, monkeypatch):
    hub.delay = 2.0
    began = time.monotonic()
    assert not online(seconds=0.3) and time.monotonic() - began < 1.5
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not online()


def test_offline_is_offline(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not online()


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


def test_peak_memory_is_that_of_the_block():
    """Also where a block lies in another one, as a run of the loop does in lesson 6."""
    with PeakMemory(torch.device("cpu")) as outer:
        large = torch.ones(2**27)  # 0.5 GiB
        time.sleep(0.1)
        del large
        with PeakMemory(torch.device("cpu")) as inner:
            small = torch.ones(2**26)
            time.sleep(0.1)
        assert small[0] == 1
    assert outer.gib == pytest.approx(0.5, abs=0.1) and inner.gib == pytest.approx(0.25, abs=0.1)
    assert outer.total == pytest.approx(inner.total + 0.25, abs=0.1)
