"""Requests to the server, as they should be and as they should not, drawn by a seed; and how they are sent."""

import http.client
import json
import socket
from dataclasses import dataclass, replace
from urllib.parse import quote

from campaigns.mutations import HALF, damaged, mutated

TEXTS = ("a warm and funny story", "a dull film", "the sea", "it rained in the night " * 8, "é 😀 \x01", "{x} a")
PATHS = (
    "/v1/models", "/v1/prompts", "/tokenizer_info", "/metrics", "/healthz", "/health", "/readyz", "/", "/docs",
    "/playground/docs.js", "/openapi.json",
)  # fmt: skip
SAMPLED = {"temperature": 1.0, "top_p": 0.9, "seed": 3, "n": 2}
UPLOADED = ("u0", "u1", "u2", "u3")
HEADERS = {
    "Host": ("", "attacker.example", "localhost:99999", "[::1", "localhost, localhost", "\xff"),
    "Origin": ("null", "http://attacker.example", "http://localhost", "x" * 5_000),
    "Content-Type": ("", "text/plain", "application/json; charset=utf-7", "multipart/form-data; boundary=x", "\xff"),
    "Content-Length": ("0", "-1", "5", "99999999999", "1_0", "0x10", "5, 5"),
    "Transfer-Encoding": ("chunked", "gzip", "identity", "chunked, chunked"),
    "Expect": ("100-continue", "x"),
    "X-Request-Id": ("a", "\xff", "x" * 100, "../../x"),
    "Authorization": ("Bearer", "Bearer x", "Basic eDp4", "\xff"),
    "Connection": ("upgrade", "keep-alive"),
    "Upgrade": ("websocket", "h2c"),
    "Accept": ("text/event-stream", "\xff"),
    "Range": ("bytes=0-1",),
}
ENDS = ("%00", "/", "//", "%2e%2e/", "@", "@00000000", "?count=0", "?count=x&count=1", "?%ff", "%ff", "é", "x" * 300)


@dataclass(frozen=True)
class Asked:
    """A request."""

    method: str
    path: str
    content: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    """Besides the usual ones, or in the place of those."""
    change: str = ""
    """What is wrong with it."""
    sent: bytes | None = None
    """What is sent where that is no whole request."""

    def raw(self):
        """The bytes of it."""
        if self.sent is not None:
            return self.sent
        headers = {"Host": "localhost", "Content-Length": str(len(self.content)), "Connection": "close"}
        if self.content:
            headers["Content-Type"] = "application/json"
        lines = [f"{name}: {value}" for name, value in (headers | dict(self.headers)).items()]
        head = "\r\n".join([f"{self.method} {self.path} HTTP/1.1", *lines])
        return f"{head}\r\n\r\n".encode("latin-1", "replace") + self.content


def well_formed(draw, names, archives):
    """A request that a client may send, of names that are served and archives of prompts."""
    name, text, upload = draw.choice(names), draw.choice(TEXTS), draw.choice(UPLOADED)
    writing = {"model": name, "prompt": text, "max_tokens": draw.randint(1, 8)}
    message = {"role": "user", "content": draw.choice((text, [{"type": "text", "text": text}]))}
    posts = (
        ("/v1/completions", writing),
        ("/v1/completions", writing | SAMPLED | {"stop": ["x", "the"], "logprobs": 2, "user": "u"}),
        ("/v1/completions", writing | {"prompt": [text, "b"], "num_beams": 2, "length_penalty": 0.5}),
        ("/v1/completions", writing | {"stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/completions", writing | {"prompt": [5, 6, 7, 8], "echo": True, "logprobs": 1, "max_tokens": 0}),
        ("/v1/completions", {"model": name, "fields": [{"sentence": text}], "timeout": 5.0, "show_input": True}),
        ("/v1/chat/completions", {"model": name, "messages": [message], "logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", {"model": name, "messages": [message], "max_completion_tokens": 3, "stream": True}),
        ("/v1/classify", {"model": name, "input": [text, "b"], "labels": ["good", "bad", "very bad"]}),
        ("/v1/classify", {"model": name, "input": text, "finished": True}),
        ("/v1/classify", {"model": name, "fields": {"sentence": text}}),
        ("/tokenize", {"prompt": text, "add_special_tokens": True, "return_token_strs": True}),
        ("/detokenize", {"tokens": [5, 300, 6]}),
    )
    if (point := draw.random()) < 0.75:
        path, body = draw.choice(posts)
        return Asked("POST", path, json.dumps(body).encode())
    if point < 0.87:
        told = (f"/v1/models/{name}", f"/v1/prompts/{name}/nearest?count=3")
        return Asked(draw.choice(("GET", "GET", "HEAD")), draw.choice((*PATHS, *told)))
    changes = (
        Asked("PUT", f"/v1/prompts/{upload}", draw.choice(archives)),
        Asked("PUT", "/v1/ensembles/e0", json.dumps({"members": ["p0", "p1"]}).encode()),
        Asked("PUT", "/v1/aliases/a0", json.dumps({"targets": {"p0": 40.0, "p1": 60.0}}).encode()),
        Asked("DELETE", f"/v1/prompts/{draw.choice((*UPLOADED, 'e0', 'a0'))}"),
    )
    return draw.choice(changes)


def fuzzed(draw, names, archives, bad_archives):
    """A request with something wrong in it; or one that is right and whose client leaves."""
    asked = well_formed(draw, names, archives)
    is_json = asked.content.startswith(b"{")
    change = draw.choice(("json", "json", "json", "body", "head", "path", "method", "bytes", "leave", "upload"))
    if change == "upload":
        return Asked("PUT", f"/v1/prompts/{draw.choice(UPLOADED)}", draw.choice(bad_archives), change=change)
    if change == "json" and is_json:
        body = json.loads(asked.content)
        for _ in range(draw.choice((1, 1, 2, 3))):
            body = mutated(body, draw)
        return replace(asked, content=json.dumps(body).encode(), change=change)
    if change in ("json", "body"):
        return replace(asked, content=damaged(asked.content, draw), change="body")
    if change == "head":
        headers = []
        for name in draw.sample(list(HEADERS), k=draw.choice((1, 1, 2))):
            headers.append((name, draw.choice(HEADERS[name])))
        return replace(asked, headers=tuple(headers), change=change)
    if change == "path":
        cut = draw.randint(1, len(asked.path))
        path = draw.choice((asked.path + draw.choice(ENDS), asked.path[:cut], quote(asked.path[1:], safe="")))
        return replace(asked, path=path.replace(HALF, ""), change=change)
    if change == "method":
        methods = ("GET", "POST", "PUT", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "get", "X" * 100)
        return replace(asked, method=draw.choice(methods), change=change)
    raw = asked.raw()
    if change == "leave":
        return replace(asked, sent=raw[: draw.choice((len(raw), draw.randint(1, len(raw))))], change=change)
    return replace(asked, sent=damaged(raw, draw), change=change)


IS_CUT = ("head", "bytes", "leave")  # such that the server may wait for more, or see no request


def send(port, asked, seconds=60.0):
    """The status and the content of the answer; None where there is none, as there may be to what is no request."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        if asked.change in IS_CUT:
            connection.settimeout(0.3)
        try:
            connection.sendall(asked.raw())
            if asked.change == "leave":
                return None, b""
            answer = http.client.HTTPResponse(connection, method=asked.method)
            answer.begin()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            if asked.change not in IS_CUT:
                raise
            return None, b""
