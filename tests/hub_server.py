"""A model hub on this machine: what the real one answers to listing and downloading, over HTTP."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


@dataclass
class Hub:
    """Repositories as `{"owner/name": {path: content}}`; those in `gated` want a licence accepted first."""

    repositories: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    downloads: list[str] = field(default_factory=list)  # paths that were fetched, in order
    endpoint: str = ""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Answer on a free port while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/.+)?", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
            match = listing or file
            repository = match[1] if match else ""
            if repository not in hub.repositories:
                return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            files = hub.repositories[repository]
            if listing:
                return self.reply(200, json.dumps(describe(repository, files)).encode(), {}, body)
            if repository in hub.gated:
                return self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
            assert file is not None
            if file[2] not in files:
                return self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
            content = files[file[2]]
            if body:
                hub.downloads.append(f"{repository}/{file[2]}")
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            return self.reply(200, content, headers, body)

        def reply(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def describe(repository: str, files: dict[str, bytes]) -> dict[str, object]:
    siblings = []
    for path, content in files.items():
        entry: dict[str, object] = {"rfilename": path, "size": len(content)}
        if path.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
        siblings.append(entry)
    return {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "tags": []}
