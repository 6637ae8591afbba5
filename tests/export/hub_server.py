"""A Hub on this machine: a real HTTP server that speaks what an upload needs, and keeps it.

It knows the endpoints that huggingface_hub 2.4 calls for create_repo, list_repo_files and
create_commit over git LFS (not Xet, which needs a store of its own: HF_HUB_DISABLE_XET=1).
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator


class LoopbackHub:
    """Repositories in memory; `refused` paths (regular expressions) are answered with 403."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}  # by SHA-256, as git LFS keeps them
        self.commits: list[str] = []
        self.calls: list[str] = []
        self.tokens: set[str] = set()
        self.refused: list[str] = []

    def answer(self, method: str, path: str, body: bytes, endpoint: str) -> tuple[int, object]:
        """Status and JSON of one request."""
        if any(re.search(pattern, f"{method} {path}") for pattern in self.refused):
            return 403, {"error": "You have no right to write here."}
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted['organization']}/{wanted['name']}"
            status = 409 if repo in self.repos else 200
            self.repos.setdefault(repo, {".gitattributes": b""})
            return status, {"url": f"{endpoint}/{repo}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if match := re.fullmatch(r"/api/models/(.+)/tree/main", path):
            files = self.repos[match[1]].items()
            return 200, [{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in files]
        if re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            return 200, {"files": [self.mode(file) for file in json.loads(body)["files"]]}
        if path.endswith(".git/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            return 200, {"objects": [self.place(obj, endpoint) for obj in wanted]}
        if path.startswith("/store/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/store/")
            self.objects[path.removeprefix("/store/")] = body
            return 200, {}
        if match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            return 200, self.commit(match[1], body, endpoint)
        return 404, {"error": f"no such endpoint: {method} {path}"}

    def mode(self, file: dict) -> dict:
        large = file["path"].endswith(".safetensors")
        how = "lfs" if large else "regular"
        return {"path": file["path"], "uploadMode": how, "shouldIgnore": False}

    def place(self, obj: dict, endpoint: str) -> dict:
        """Where an object is to be sent; nowhere if it is here."""
        if obj["oid"] in self.objects:
            return obj
        return obj | {"actions": {"upload": {"href": f"{endpoint}/store/{obj['oid']}"}}}

    def commit(self, repo: str, body: bytes, endpoint: str) -> dict:
        """Applies the operations, one per line, to the repository's files."""
        files = dict(self.repos[repo])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                self.commits.append(value["summary"])
        self.repos[repo] = files
        oid = hashlib.sha1(body).hexdigest()
        return {"commitUrl": f"{endpoint}/{repo}/commit/{oid}", "commitOid": oid}


@contextlib.contextmanager
def serve() -> Iterator[tuple[LoopbackHub, str]]:
    """A running Hub, and its address."""
    hub = LoopbackHub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            path = urllib.parse.urlsplit(self.path).path
            body = self.read_body()
            hub.calls.append(f"{self.command} {path}")
            hub.tokens.add(self.headers.get("Authorization", "").removeprefix("Bearer "))
            status, content = hub.answer(self.command, path, body, endpoint)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def read_body(self) -> bytes:
            if "Content-Length" in self.headers:
                return self.rfile.read(int(self.headers["Content-Length"]))
            body = b""
            while "chunked" in self.headers.get("Transfer-Encoding", ""):
                size = int(self.rfile.readline(), 16)
                body += self.rfile.read(size)
                self.rfile.readline()
                if size == 0:
                    break
            return body

        do_GET = do_POST = do_PUT = handle_any

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub, endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
