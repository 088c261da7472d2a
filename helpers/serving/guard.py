"""Guard: looks at every request before anything else does, and says no in the way that Lamini's client understands."""

import asyncio
import secrets
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers

from helpers.serving.engine import Refusal

REQUEST_BYTES = 16 * 2**20  # of one request; as much again is read and thrown away, so that its sender can be told
REQUEST_SECONDS = 60.0  # in which a request has to arrive
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def refuse(refusal: Refusal) -> JSONResponse:
    """Make an answer of a refusal: `detail` is what Lamini's client shows, `error` what OpenAI's does."""
    headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
    return JSONResponse({"detail": refusal.detail, "error": {"message": refusal.detail}}, refusal.status, headers)


class Guard:
    """Refuses requests that are addressed to somebody else, come from web pages, lack the key, or bring too much."""

    def __init__(self, app, key: str | None, hosts: set[str] | None):
        """hosts: the names this server goes by. None: any, which is safe with a key only.

        Without this check a web page could point its own name at this machine and let a browser talk to the server.
        """
        self.app, self.key, self.hosts = app, key, hosts

    async def __call__(self, scope, receive, send) -> None:
        """Pass a request on with its body read, or refuse it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            self.check(Headers(scope=scope))
            async with asyncio.timeout(REQUEST_SECONDS):
                body = await self.read(receive)
        except TimeoutError:
            late = Refusal(524, f"The request took more than {REQUEST_SECONDS:g} s to arrive. Send it faster, or send less.")
            return await refuse(late)(scope, receive, send)
        except Refusal as refusal:
            return await refuse(refusal)(scope, receive, send)
        first = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again():
            return first.pop() if first else await receive()

        await self.app(scope, receive_again, send)

    def check(self, headers: Headers) -> None:
        """Look at where a request goes, where it comes from, and its key. Raises Refusal."""
        try:
            host, origin = urlsplit("//" + headers.get("host", "")), urlsplit(headers.get("origin", ""))
            known = not self.hosts or host.hostname in self.hosts
        except ValueError:
            known = False
        if not known:
            raise Refusal(400, "This server answers under its own address only.")
        if "origin" in headers and origin.netloc != host.netloc:
            raise Refusal(400, "This server does not answer web pages from elsewhere.")
        scheme, _, key = headers.get("authorization", "").partition(" ")
        right = secrets.compare_digest(key.strip().encode(), (self.key or "").encode())
        if self.key and not (right and scheme.lower() == "bearer"):
            raise Refusal(401, "This key is wrong. Set lamini.api_key to the one that the server was started with.")

    @staticmethod
    async def read(receive) -> bytes:
        """Read a body, whether its length is declared or not. Raises Refusal when it is too long."""
        body, size, more = bytearray(), 0, True
        while more and size <= 2 * REQUEST_BYTES:
            message = await receive()
            more, part = message.get("more_body", False), message.get("body", b"")
            size += len(part)
            if size <= REQUEST_BYTES:
                body += part
        if size > REQUEST_BYTES:
            raise Refusal(400, f"The request is longer than {REQUEST_BYTES >> 20} MiB. Send less, or send it in parts.")
        return bytes(body)
