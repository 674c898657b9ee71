"""Connections from outside: half-open, slow, too many, too long; on real sockets, with limits below a second."""

import errno
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from asyncio.selector_events import BaseSelectorEventLoop
from contextlib import suppress
from hashlib import sha256
from http.client import HTTPResponse

import pytest
from test_server import listening_app, make_server

from softprompt.serving.http import listening
from softprompt.serving.http.access import Access, Key
from softprompt.serving.http.app import make_app
from softprompt.serving.http.wire import MOST_SKIPPED, Limits

KEY = Key(name="team", sha256=sha256(b"0123456789abcdef").hexdigest(), scopes=frozenset({"use", "administer"}))
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
QUICK = Limits(max_body=2_000_000, body_seconds=0.3)


async def app(scope, receive, send):
    """Says ok to whatever is asked."""
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def served(llama, tmp_path):
    """The port of a server with a key and short times."""
    server = make_server(llama, tmp_path, num_prompts=0, access=Access((KEY,)), limits=QUICK)
    server.warm_up = lambda: None
    with listening_app(make_app(server)) as port:
        yield port


def called(port, data=b""):
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(data)
    return client


def posted(length, *, key=True, more=""):
    bearer = "Authorization: Bearer 0123456789abcdef\r\n" if key else ""
    return (
        f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{bearer}"
        f"Content-Length: {length}\r\n{more}\r\n"
    ).encode()


def answered(client):
    """One answer, on a connection that may stay open: the status and what says whether it does."""
    answer = HTTPResponse(client)
    answer.begin()
    answer.read()
    return answer.status, answer.getheader("connection")


def heard(client):
    """All that comes until the other side closes."""
    said = b""
    try:
        while part := client.recv(65_536):
            said += part
    except ConnectionResetError:  # it closed on what it had not read
        pass
    return said


def why(said, status):
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), said
    assert b"connection: close" in head.lower()
    return json.loads(body)["error"]["message"]


@pytest.mark.parametrize("before", [b"", GET])
@pytest.mark.parametrize("begin", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nX-A: 1\r\n"])
def test_a_head_that_does_not_come_ends_its_connection(before, begin):
    with listening_app(app, head_seconds=0.3) as port, called(port, before) as client:
        if before:
            assert answered(client)[0] == 200
            if not begin:
                return  # an idle connection is uvicorn's to close
        began = time.monotonic()
        client.sendall(begin)
        said = heard(client)
        assert 0.2 < time.monotonic() - began < 5.0
        if begin:
            assert why(said, 408) == "the head of a request must come in 0.3 seconds"
        else:
            assert said == b""


def test_a_head_of_a_byte_now_and_then_ends_its_connection():
    with listening_app(app, head_seconds=0.3) as port, called(port) as client, pytest.raises(OSError):
        for byte in b"GET / HTTP/1.1\r\nX-A: " + b"a" * 1_000:
            client.sendall(bytes([byte]))
            time.sleep(0.02)


def test_a_request_that_takes_longer_than_a_head_may_is_not_cut_off():
    async def slow(scope, receive, send):
        if scope["type"] == "http":
            time.sleep(0.4)
        await app(scope, receive, send)

    with listening_app(slow, head_seconds=0.2) as port, called(port, GET) as client:
        assert answered(client)[0] == 200


@pytest.mark.parametrize("data", [b"\x16\x03\x01 no http\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000])
def test_what_is_no_request_gets_a_reason_in_json(data):
    with listening_app(app) as port, called(port, data) as client:
        assert why(heard(client), 400) == "what came is no request of HTTP/1.1, or its head is too long"


def test_more_connections_than_are_taken_wait_and_the_log_says_it_once(caplog):
    caplog.set_level(logging.WARNING)
    with listening_app(app, max_connections=3, head_seconds=0.6) as port:
        half_open = [called(port, b"GET ") for _ in range(3)]
        time.sleep(0.1)
        waiting = [called(port, GET) for _ in range(3)]
        waiting[0].settimeout(0.2)
        with pytest.raises(TimeoutError):
            waiting[0].recv(1_000)
        for client in waiting:
            client.settimeout(10)
            assert answered(client)[0] == 200
        for client in half_open + waiting:
            client.close()
    (record,) = caplog.records
    assert record.message == (
        "3 connections are open, which are all that are taken; new ones wait, and this is said once a minute at most"
    )


@pytest.mark.parametrize("size", [50_000, 500_000])
def test_an_answer_that_nobody_takes_ends_its_connection(size):
    async def talkative(scope, receive, send):
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": b"x" * size})

    with listening_app(talkative, stuck_seconds=0.2) as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.connect(("127.0.0.1", port))
        client.settimeout(10)
        client.sendall(GET * 200)  # more answers than the system holds for both sides
        time.sleep(1.0)
        assert len(heard(client)) < 200 * size


def test_an_answer_that_is_taken_slowly_is_whole():
    async def talkative(scope, receive, send):
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"x" * 10_000_000})

    with listening_app(talkative, stuck_seconds=0.3) as port, called(port, GET) as client:
        said = b""
        for _ in range(12):
            said += client.recv(500_000)
            time.sleep(0.1)
        assert len(said + heard(client)) > 10_000_000


@pytest.mark.parametrize("path", ["POST /tokenize", "PUT /v1/prompts/x"])
def test_a_client_that_leaves_amid_its_body_is_no_error_of_ours(served, path, caplog):
    caplog.set_level(logging.INFO, "softprompt.access")
    with called(served, posted(1_000).replace(b"POST /tokenize", path.encode()) + b"{"):
        time.sleep(0.1)
    for _ in range(100):
        if caplog.records:
            break
        time.sleep(0.01)
    (record,) = caplog.records
    assert json.loads(record.message)["status"] == 499


def test_a_system_out_of_files_pauses_and_the_log_says_it_once(caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    accept, refusals = BaseSelectorEventLoop.sock_accept, [OSError(errno.EMFILE, "Too many open files")] * 3
    refusals.append(ConnectionAbortedError())

    async def scarce(loop, bound):
        if refusals:
            raise refusals.pop(0)
        return await accept(loop, bound)

    monkeypatch.setattr(BaseSelectorEventLoop, "sock_accept", scarce)
    monkeypatch.setattr(listening, "PAUSE", 0.01)
    with listening_app(app) as port, called(port, GET) as client:
        assert answered(client)[0] == 200
    (record,) = caplog.records
    assert record.message.startswith("no connection can be taken (Too many open files); new ones wait")
    assert record.exc_info is None and not refusals


def test_the_limit_on_connections_leaves_files_for_prompts():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))\n"
        "from softprompt.serving.http.listening import connections_allowed; print(connections_allowed())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "750\n"


def test_a_body_that_is_too_long_is_not_read(served):
    with called(served, posted(10_000_000_000) + b"x" * 1_000) as client:
        assert why(heard(client), 413) == "the body is longer than 2,000,000 bytes, which is all that is allowed"
    with called(
        served, posted(1, more="Transfer-Encoding: chunked\r\n").replace(b"Content-Length: 1\r\n", b"")
    ) as client:
        sent, piece = 0, b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        with pytest.raises(OSError):
            while sent < 100_000_000:
                client.sendall(piece)
                sent += len(piece)
        assert sent < 20_000_000  # what the system holds for both sides


def test_a_body_that_does_not_come_is_a_408(served):
    began = time.monotonic()
    with called(served, posted(1_000) + b'{"prompt": ') as client:
        assert why(heard(client), 408).startswith(
            "11 bytes of the body came in 0.3 seconds, and no more are waited for"
        )
    with called(served, posted(1_000_000)) as client:
        stopped = threading.Event()

        def trickle():
            with suppress(OSError):
                while not stopped.wait(0.02):
                    client.sendall(b" ")

        thread = threading.Thread(target=trickle)
        thread.start()
        assert "bytes of the body came in 0.3 seconds" in why(heard(client), 408)
        stopped.set()
        thread.join()
    assert time.monotonic() - began < 8.0


def test_a_large_body_has_more_time(served):
    with called(served, posted(1_900_000)) as client:
        client.sendall(b'{"wrong": "' + b"x" * 900_000)
        time.sleep(0.6)
        client.sendall(b'"}' + b" " * 999_987)
        assert answered(client) == (400, None)


def test_a_refusal_that_comes_before_the_body_is_seen_and_a_short_rest_is_skipped(served):
    with called(served) as client:
        for _ in range(2):
            client.sendall(posted(500_000, key=False) + b"x" * 500_000)
            assert answered(client) == (401, None)
    with called(served, posted(MOST_SKIPPED + 1, key=False)) as client:
        assert why(heard(client), 401).startswith("no API key")
    with called(served, posted(1_000, key=False, more="Expect: 100-continue\r\n")) as client:
        assert why(heard(client), 401).startswith("no API key")
    with called(served, posted(2, more="Expect: 100-continue\r\n")) as client:
        assert client.recv(1_000).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"{}")
        assert answered(client) == (400, None)
