import base64
import hashlib
import random
import socket
import socketserver
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.hub import COMMIT, Fault, Hub

from moe_outliers.checkpoint import http_ranges, hub
from moe_outliers.checkpoint.http_ranges import ATTEMPTS, Ranges
from moe_outliers.checkpoint.hub import File
from moe_outliers.checkpoint.source import Stopped

CONTENT = random.Random(0).randbytes(300_000)
NAME = "model.safetensors"
TOKEN = "hf_" + "x" * 30


@pytest.fixture
def served(tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT)
    with Hub(models={"org/model": tmp_path}) as server:
        yield server


def reader(server, **options):
    listed = File(len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
    options = {"patience_s": 1.0, "pause_s": 0.01} | options
    return Ranges(server.url, "org/model", COMMIT, {NAME: listed}, **options)


def read(ranges, start=0, stop=300_000):
    got = bytearray(stop - start)
    ranges.read_into(NAME, start, memoryview(got))
    return bytes(got)


def test_a_range_is_the_bytes_of_the_file(served):
    ranges = reader(served)
    for start, stop in [(0, 1), (5, 70_000), (299_999, 300_000), (0, 300_000), (7, 7)]:
        assert read(ranges, start, stop) == CONTENT[start:stop]
    assert len({id(c) for c in ranges._open}) == 1  # one connection served all


STALL = pytest.param("stall", 1, marks=pytest.mark.waits)


@pytest.mark.fault(68, 69, 70)
@pytest.mark.parametrize(
    ("fault", "times"),
    [("drop", 3), ("500", 3), ("503", 5), ("429", 3), ("408", 1), ("norange", 2), STALL],
)
def test_what_may_pass_is_tried_again_and_goes_on_where_it_was(fault, times, served):
    served.faults.append(Fault(fault, NAME, times=times))
    assert read(reader(served)) == CONTENT
    assert served.faults[0].fired == times
    if fault == "drop":  # the second half of the first half, and so on
        assert served.bytes_sent[NAME] < 2 * len(CONTENT) + 1000


@pytest.mark.waits
@pytest.mark.fault(68)
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "1"}, 1), ({"RateLimit": '"resolvers";r=0;t=1'}, 2)],
    ids=["Retry-After", "RateLimit"],
)
def test_it_waits_for_as_long_as_it_is_asked_to(headers, seconds, served, monkeypatch):
    """Also for longer than it would by itself: the hub counts requests over five minutes."""
    monkeypatch.setattr(http_ranges, "LONGEST_PAUSE_S", 0.1)
    served.faults.append(Fault("429", NAME, headers=headers))
    assert read(reader(served)) == CONTENT
    assert served.faults[0].fired == 1
    first, second = served.moments
    assert seconds <= second - first < seconds + 2
    assert hub.asked_to_wait({"Retry-After": "290"}) == 290
    assert hub.asked_to_wait({"Retry-After": "9" * 400}) == hub.LONGEST_WAIT_S
    assert hub.asked_to_wait({"Retry-After": "soon"}) == 0


@pytest.mark.fault(70)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("500", "status 500"),
        ("norange", "ignored the range"),
        ("drop", "closed"),
        pytest.param("stall", "timed out", marks=pytest.mark.waits),
    ],
)
def test_what_does_not_pass_is_given_up_with_the_reason(fault, message, served):
    served.faults.append(Fault(fault, NAME, times=99))
    with pytest.raises(ValueError, match=f"could not read {NAME}.*{message}.*6 attempts"):
        read(reader(served, patience_s=0.1), 0, 40)
    assert served.faults[0].fired == ATTEMPTS


@pytest.mark.fault(73)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("401", "accept the licence.*HF_TOKEN"),
        ("403", "accept the licence.*HF_TOKEN"),
        ("404", f"has no {NAME}"),
    ],
)
def test_what_only_a_person_can_mend_is_not_tried_again(fault, message, served):
    served.faults.append(Fault(fault, NAME, times=99))
    with pytest.raises(ValueError, match=message):
        read(reader(served))
    assert served.faults[0].fired == 1


@pytest.mark.fault(72)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("commit", "changed on the way: its commit is"),
        ("etag", "changed on the way: its sha256 is"),
        ("size", "changed on the way: its size is"),
        ("page", r"from 127\.0\.0\.1:\d+: .* ignored the range"),
    ],
)
def test_what_is_not_the_file_that_the_hub_listed_is_noticed(fault, message, served):
    served.faults.append(Fault(fault, NAME, times=99))
    with pytest.raises(ValueError, match=message):
        read(reader(served))
    assert served.faults[0].fired


def test_a_file_that_shrinks_under_us_is_noticed(served, tmp_path):
    ranges = reader(served)
    read(ranges, 0, 10)
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="changed on the way"):
        read(ranges, 0, 10)


@pytest.mark.waits
def test_a_server_that_drips_is_given_up(served):
    served.faults.append(Fault("drip", NAME, times=99))
    started = time.monotonic()
    with pytest.raises(ValueError, match="too slow"):
        read(reader(served, patience_s=0.2), 0, 5_000)
    assert time.monotonic() - started < 10


def test_the_token_goes_to_the_hub_and_to_no_other_host(served, tmp_path):
    with Hub(models={"org/model": tmp_path}) as store:
        served.store, served.token = store, TOKEN
        ranges = reader(served, token=TOKEN)
        assert read(ranges, 0, 1000) + read(ranges, 1000) == CONTENT
        assert served.tokens == [f"Bearer {TOKEN}"]  # the way to the store was remembered
        assert store.tokens == [None, None]


def test_an_address_of_the_store_that_ran_out_is_asked_for_again(served, tmp_path):
    with Hub(models={"org/model": tmp_path}) as store:
        served.store = store
        ranges = reader(served)
        read(ranges, 0, 10)
        store.faults.append(Fault("403", NAME, times=1))
        assert read(ranges) == CONTENT
        assert len(served.requests) == 2


def test_an_address_that_ran_out_is_no_failure_though_many_use_it(served, tmp_path):
    with Hub(models={"org/model": tmp_path}) as store:
        served.store = store
        ranges = reader(served)
        read(ranges, 0, 10)
        store.faults.append(Fault("403", NAME, times=8))
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: read(ranges, n * 1000, n * 1000 + 1000), range(8)))
        assert b"".join(found) == CONTENT[:8000]
        assert store.faults[0].fired == 8


def test_an_address_that_holds_for_one_range_is_not_used_for_another(served, tmp_path):
    """The hub signs the range, too, where its store asks for it."""
    with Hub(models={"org/model": tmp_path}) as store:
        served.store, served.range_bound = store, True
        ranges = reader(served)
        found = [read(ranges, start, start + 1000) for start in range(0, 300_000, 1000)]
        assert b"".join(found) == CONTENT
        assert len(store.requests) == 301  # one was refused; then each asks for its own address


def test_a_store_that_always_refuses_is_given_up(served, tmp_path):
    with Hub(models={"org/model": tmp_path}) as store:
        served.store = store
        store.faults.append(Fault("403", NAME, times=99))
        with pytest.raises(ValueError, match=r"status 403 \(6 attempts\)"):
            read(reader(served))


def test_a_proxy_that_wants_a_password_gets_it(served, monkeypatch):
    asked = []

    class Proxy(socketserver.StreamRequestHandler):
        def handle(self):
            lines = iter(self.rfile.readline, b"\r\n")
            asked.extend(line.decode().strip() for line in lines)
            host, port = asked[0].split()[1].split(":")
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            with socket.create_connection((host, int(port))) as there:
                there.sendall(self.connection.recv(10_000))
                while data := there.recv(100_000):
                    self.connection.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.daemon_threads, proxy.block_on_close = True, False
        threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
        place = f"http://me:p%40ss@127.0.0.1:{proxy.server_address[1]}"
        monkeypatch.setenv("http_proxy", place)
        monkeypatch.setenv("no_proxy", "")
        assert read(reader(served)) == CONTENT
        proxy.shutdown()
    assert asked[0].startswith("CONNECT 127.0.0.1:")
    assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:p@ss').decode()}" in asked


def test_a_redirection_without_end_is_given_up(served):
    served.store = served
    with pytest.raises(ValueError, match="redirections"):
        read(reader(served))


def test_closing_ends_a_read_that_waits(served):
    served.faults.append(Fault("stall", NAME, times=99))
    ranges, ended = reader(served, patience_s=60), []

    def wait():
        try:
            read(ranges)
        except Stopped:
            ended.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    while not served.faults[0].fired:
        time.sleep(0.01)
    time.sleep(0.05)
    ranges.close()
    thread.join(5)
    assert ended == [True]


def test_a_server_that_is_not_there_is_given_up_with_its_name(served):
    ranges = reader(served)
    ranges._base, ranges._home = "http://127.0.0.1:9/x", ("http", "127.0.0.1:9")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9.*refused"):
        read(ranges)
