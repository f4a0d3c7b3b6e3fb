"""How the studio is reached: from this machine alone, unless it is told otherwise in so many words."""

import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sage.errors import ModelError, SageError, SettingsError
from sage.models.known import KNOWN, installed
from sage.studio.service import Limits, Studio

UPLOAD = 20_000_000  # bytes of a picture file
MESSAGE = 1_000_000  # bytes of any other request
POLICY = ("default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
          "form-action 'self'")


def choose_models(wanted: Sequence[str] | None) -> list[str]:
    """The models that were named, or all known ones that are on this disk."""
    found = list(wanted or [name for name in KNOWN if installed(name)])
    if not found:
        raise ModelError("no model is on this disk: sage fetch sd-1.4, or name one with --model")
    return found


def prepare(folder: Path) -> list[str]:
    """Take Gradio's settings out of the environment, where they could open the studio unseen, and give it a folder.

    Returns:
        The names of those that were there.
    Raises:
        SettingsError: Gradio is not installed.
    """
    ignored = sorted(name for name in os.environ if name.startswith("GRADIO_"))
    for name in ignored:
        del os.environ[name]
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise SettingsError("the studio needs Gradio: pip install 'sage-edit[ui]'") from error
    return ignored


def launch(studio: Studio, host: str = "127.0.0.1", port: int = 7860, queue: int = 16, share: bool = False,
           root_path: str = "") -> tuple[Any, str]:
    """Serve the studio from threads of this process.

    Args:
        studio: whose folder is that of `prepare`.
        port: 0 for any free one.
        queue: how many may wait; others are told that it is full.
    Returns:
        The gr.Blocks, to be closed, and the address.
    Raises:
        SettingsError: the address cannot be had.
    """
    port = free_port(host, port)
    from starlette.middleware import Middleware

    from sage.studio.page import CSS, THEME, build
    page = build(studio)
    page.queue(max_size=queue, default_concurrency_limit=1, api_open=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _, local, shared = page.launch(
                server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True, inbrowser=False,
                show_error=False, max_file_size=UPLOAD, allowed_paths=[], blocked_paths=[], root_path=root_path,
                enable_monitoring=False, run_history=False, mcp_server=False, ssr_mode=False, pwa=False,
                footer_links=[], state_session_capacity=studio.limits.visits, strict_cors=True, theme=THEME, css=CSS,
                app_kwargs={"middleware": [Middleware(Guard)], "docs_url": None, "redoc_url": None})
        except OSError as error:  # somebody was quicker
            raise SettingsError(_refused(host, port)) from error
    return page, shared or local


def serve(models: Sequence[str] | None, limits: Limits, host: str, port: int, queue: int, share: bool) -> None:
    """Serve until Ctrl-C; everything that visitors left is deleted then."""
    import tempfile
    port = free_port(host, port)  # before a model is loaded for nothing
    with tempfile.TemporaryDirectory(prefix="sage-studio-", ignore_cleanup_errors=True) as folder:
        if ignored := prepare(Path(folder)):
            print(f"sage: note: {', '.join(ignored)} ignored: the studio is opened by its own arguments alone",
                  file=sys.stderr)
        print("sage: loading the model", file=sys.stderr)
        studio = Studio(choose_models(models), limits, Path(folder) / "studio")
        page, address = launch(studio, host, port, queue, share)
        print(f"the studio is at {address} (Ctrl-C ends it)", flush=True)
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        try:
            while not ended.wait(1):
                pass
        except KeyboardInterrupt:
            pass
        finally:
            page.close(verbose=False)
            studio.close()


def free_port(host: str, port: int) -> int:
    """`port`, or for 0 any free one.

    Raises:
        SettingsError: it cannot be listened at.
    """
    import socket
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise SettingsError(f"{host} is no address of this machine: leave --host out") from error
        raise SettingsError(_refused(host, port, error.errno)) from error


def _refused(host: str, port: int, why: int | None = errno.EADDRINUSE) -> str:
    reason = "is taken by another program" if why == errno.EADDRINUSE else "may not be listened at"
    return f"{host}:{port} {reason}: give another --port, or --port 0 for any that is free"


class Guard:
    """Refuses requests that are too long before they are read, and lets a page load nothing from elsewhere."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        most = UPLOAD + MESSAGE if scope["path"].rstrip("/").endswith("/upload") else MESSAGE
        headers = dict(scope["headers"])
        if int(headers.get(b"content-length", b"0") or 0) > most:
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"text/plain")]})
            return await send({"type": "http.response.body", "body": f"at most {most} bytes".encode()})
        read = 0

        async def counted() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise SageError(f"a request of more than {most} bytes was ended")
            return message

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode()),
                                      (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
            await send(message)

        await self.app(scope, counted, guarded)
