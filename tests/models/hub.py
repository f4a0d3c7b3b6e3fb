"""A hub on 127.0.0.1 that holds one model: enough of the real one's manners to be downloaded from.

Large files answer as LFS files do: a redirect to a storage address, with the sha256 in X-Linked-ETag.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Hub:
    """
    Attributes:
        served: body bytes sent, by file name.
        ranges: values of the Range headers received, by file name.
        cut: names of files whose next transfer is cut in the middle; used up by it.
        stall: name of a file whose transfers stop in the middle until the hub is closed.
        damage: names of files sent with one byte changed.
        status: an HTTP status with which every request is refused.
        error: the X-Error-Code that goes with it.
    """

    def __init__(self, folder: Path, repo: str, commit: str):
        self.folder, self.repo, self.commit = folder, repo, commit
        self.served, self.ranges, self.requests = Counter(), {}, []
        self.cut, self.damage, self.stall = set(), set(), None
        self.status, self.error = None, None
        self.stalled, self.closing = threading.Event(), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in sorted(self.folder.rglob("*")) if p.is_file()}


def sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.requests.append(f"{self.command} {path}")
        if hub.status:
            self.reply(hub.status, {"X-Error-Code": hub.error} if hub.error else {})
        elif path == f"/api/models/{hub.repo}/revision/{hub.commit}":
            siblings = []
            for name, data in hub.files().items():
                entry = {"rfilename": name, "size": len(data), "blobId": sha1(data)}
                if name.endswith((".safetensors", ".ckpt")):
                    entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
                siblings.append(entry)
            body = json.dumps({"id": hub.repo, "sha": hub.commit, "siblings": siblings, "private": False,
                               "downloads": 1, "likes": 0, "tags": []}).encode()
            self.reply(200, {"Content-Type": "application/json"}, body)
        elif m := re.fullmatch(rf"/{hub.repo}/resolve/{hub.commit}/(.+)", path):
            self.resolve(m[1])
        elif path.startswith("/storage/"):
            self.send_file(path.removeprefix("/storage/"))
        else:
            self.reply(404, {"X-Error-Code": "EntryNotFound"})

    def resolve(self, name: str) -> None:
        data = self.hub.files().get(name)
        if data is None:
            return self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.hub.commit})
        if name.endswith((".safetensors", ".ckpt")):
            return self.reply(302, {
                "X-Repo-Commit": self.hub.commit, "X-Linked-Size": str(len(data)), "ETag": f'"{sha1(data)}"',
                "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Location": f"{self.hub.url}/storage/{name}"})
        self.send_file(name, {"X-Repo-Commit": self.hub.commit, "ETag": f'"{sha1(data)}"'})

    def send_file(self, name: str, headers: dict[str, str] | None = None) -> None:
        hub, data, start = self.hub, bytearray(self.hub.files()[name]), 0
        if name in hub.damage:
            data[len(data) // 2] ^= 1
        if wanted := self.headers.get("Range"):
            hub.ranges.setdefault(name, []).append(wanted)
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for key, value in ({"Content-Length": str(len(data) - start)} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = len(data)
        if name in hub.cut or name == hub.stall:
            stop = start + (len(data) - start) // 2
        self.wfile.write(data[start:stop])
        self.wfile.flush()
        hub.served[name] += stop - start
        if name == hub.stall:
            hub.stalled.set()
            hub.closing.wait()
        if stop < len(data):
            hub.cut.discard(name)
            self.close_connection = True
            self.connection.close()
