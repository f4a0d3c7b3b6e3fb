"""How the studio is reached: from this machine alone, unless it is told otherwise in so many words."""

import errno
import hmac
import ipaddress
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sage.auto import auto_of
from sage.errors import ModelError, SageError, SettingsError
from sage.models.known import KNOWN, installed, own_names
from sage.studio.requests import UPLOAD, Limits
from sage.studio.service import Studio

MESSAGE = 1_000_000  # bytes of any other request
LONGEST_LENGTH = 20  # digits of a number of bytes
TOKEN = "sage-token"
PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
         ".js": "text/javascript; charset=utf-8", ".json": "application/json", ".svg": "image/svg+xml"}
POLICY = ("default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'self'; form-action 'self'; "
          "frame-ancestors {}")


def choose_models(wanted: Sequence[str] | None) -> list[str]:
    """The models that were named, or all that are on this disk: known ones, then those in the folder of weights.

    Of these the first is one whose edits can follow what is typed.
    """
    known = sorted((name for name in KNOWN if installed(name)), key=lambda name: not can_follow(name))
    found = list(wanted or [*known, *own_names()])
    if not found:
        raise ModelError("no model is on this disk: sage fetch sd-1.4, or name one with --model")
    return found


def can_follow(model: str) -> bool:
    """Whether what is recorded for a model on this disk edits while one types."""
    try:
        return auto_of(model).as_method().live
    except SageError:  # damaged: told when it is loaded
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address of this machine; port 0 for any free one.

    Raises:
        SettingsError: it cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        own = socket.socket(family, kind)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind(address)
            own.listen(128)
        except OSError:
            own.close()
            raise
        return own
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise SettingsError(f"{host} is no address of this machine: leave --host out") from error
        reason = "is taken by another program" if error.errno == errno.EADDRINUSE else "may not be listened at"
        raise SettingsError(f"{host}:{port} {reason}: give another --port, or --port 0 for any that is free") from error


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Served:
    """A studio that is reached at an address, from threads of this process.

    Attributes:
        address: with the token in it, where there is one.

    Args:
        own: what is listened at.
        home: "studio.html" or "api.html".
        token: what every request must bring; "" for nothing.
        local: whether only requests that name this machine are answered.
        root_path: under which path another server passes requests on.
        framed: the sites whose pages may show this one inside.
    """

    def __init__(self, studio: Studio, own: socket.socket, home: str = "studio.html", token: str = "",
                 local: bool = True, root_path: str = "", framed: str = ""):
        import uvicorn

        from sage.studio.api import api
        app = Guard(Pages(api(studio, bool(framed)), home), token, local, framed)
        host, port = own.getsockname()[:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}/" + (f"?token={token}" if token else "")
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off",
                                                     root_path=root_path, server_header=False, timeout_keep_alive=30))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [own]}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)


def serve(models: Sequence[str] | None, limits: Limits, host: str, port: int, home: str = "studio.html",
          token: str | None = None, gallery: Path | None = None, compiled: bool = False) -> None:
    """Serve until Ctrl-C; everything that visitors left is deleted then.

    Args:
        home: what is shown first: "studio.html" or "api.html".
        token: what visitors must bring; None for none on this machine alone and a random one anywhere else.
        compiled: as of a `Studio`.
    """
    import tempfile
    own = listen(host, port)  # before a model is loaded for nothing
    if token is None:
        token = "" if is_loopback(host) else secrets.token_urlsafe(16)
    with own, tempfile.TemporaryDirectory(prefix="sage-studio-", ignore_cleanup_errors=True) as folder:
        print("sage: loading the model", file=sys.stderr)
        studio = Studio(choose_models(models), limits, Path(folder) / "studio", gallery, compiled)
        if home == "studio.html":
            studio.begin()
        served = Served(studio, own, home, token, is_loopback(host))
        what = "studio" if home == "studio.html" else "API"
        print(f"the {what} is at {served.address} (Ctrl-C ends it)", flush=True)
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        try:
            while not ended.wait(1):
                pass
        except KeyboardInterrupt:
            pass
        finally:
            served.close()
            studio.close()


class Pages:
    """The files of the page, and everything else from another app."""

    def __init__(self, app: Any, home: str):
        self.app, self.home = app, home
        self.files = {f"/page/{path.name}": path for path in PAGE.iterdir() if path.suffix in KINDS}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or path.startswith("/api/"):
            return await self.app(scope, receive, send)
        file = PAGE / self.home if path == "/" else self.files.get(path)
        if file is None or scope["method"] not in ("GET", "HEAD"):
            return await answer(send, 404, "there is no such page")
        await answer(send, 200, file.read_bytes(), KINDS[file.suffix])


async def answer(send: Any, status: int, body: bytes | str, kind: str = "text/plain; charset=utf-8",
                 *headers: tuple[bytes, bytes]) -> None:
    """A whole answer."""
    content = body if isinstance(body, bytes) else body.encode()
    await send({"type": "http.response.start", "status": status,
                "headers": [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(content)),
                            (b"cache-control", b"no-cache"), *headers]})
    await send({"type": "http.response.body", "body": content})


class Guard:
    """Lets in who may come, refuses what is too long before it is read, and lets a page load nothing from elsewhere.

    Args:
        token: to be brought as `Authorization: Bearer`, as ?token= once, or as the cookie that this is answered with.
        local: answer only requests that name this machine, so that no page of another site can have its name stand
            for it.
        framed: the sites whose pages may show this one inside.
    """

    def __init__(self, app: Any, token: str = "", local: bool = True, framed: str = ""):
        self.app, self.token, self.local = app, token, local
        self.policy = POLICY.format(framed or "'none'").encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        if refusal := self._stranger(headers):
            return await answer(send, 403, refusal)
        if self.token and not self._known(headers):
            given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
            if not same(given, self.token):
                return await answer(send, 401, "a token is needed: open the address that the server printed")
            cookie = f"{TOKEN}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            return await answer(send, 303, "", "text/plain", (b"set-cookie", cookie.encode()), (b"location", b"./"))
        most = UPLOAD if scope["path"] in ("/api/pictures", "/api/masks") else MESSAGE
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > LONGEST_LENGTH or int(length) > most:
            return await answer(send, 413, f"that is too large: at most {most // 10**6} MB")
        read, began = 0, False

        async def counted() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise SageError(f"a request of more than {most} bytes was ended")
            return message

        async def guarded(message: Any) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                own = [name for name, _ in message["headers"]]
                more = [(b"content-security-policy", self.policy), (b"x-content-type-options", b"nosniff"),
                        (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message["headers"], *(pair for pair in more if pair[0] not in own)]
            await send(message)

        try:
            await self.app(scope, counted, guarded)
        except SageError as error:
            if not began:
                await answer(send, 413, str(error))

    def _stranger(self, headers: dict[bytes, bytes]) -> str:
        """Why a request is not answered, though it came; "" for one that is."""
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        try:
            named, site = urlsplit(f"//{host}").hostname, urlsplit(origin).netloc
        except ValueError:  # a bracket without its other
            named, site = "", "?"
        if self.local and not is_loopback(named or ""):
            return "this studio is reached by the address that it printed"
        return "another site may not speak to this studio" if origin and site != host else ""

    def _known(self, headers: dict[bytes, bytes]) -> bool:
        bearer = headers.get(b"authorization", b"").decode("latin-1").removeprefix("Bearer ")
        cookies = [part.strip().partition("=") for part in headers.get(b"cookie", b"").decode("latin-1").split(";")]
        return any(same(given, self.token) for given in [bearer, *(v for name, _, v in cookies if name == TOKEN)])


def same(given: str, wanted: str) -> bool:
    """Whether two secrets are equal, in a time that does not tell how nearly."""
    return hmac.compare_digest(given.encode(), wanted.encode())
