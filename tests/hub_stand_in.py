"""A stand-in for the hub on this machine: what huggingface_hub asks it for to make a repository, commit to it and read
it, with git LFS, revisions, private repositories and tokens."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

TOKEN = "hf_right"  # of who may write, and read what is private


class Repository:
    """Files by path, by commit."""

    def __init__(self, files, *, is_private=False):
        self.is_private, self.commits = is_private, {}
        self.commit({".gitattributes": b"*.safetensors filter=lfs\n", **files})

    def commit(self, added):
        files = {**(self.files() if self.commits else {}), **added}
        self.commits[hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()] = files
        return self.resolve("main")

    def resolve(self, revision):
        return list(self.commits)[-1] if revision == "main" else revision if revision in self.commits else None

    def files(self, revision="main"):
        return self.commits[self.resolve(revision)]


class Hub:
    """The hub at `url`. asked: what was. GET /refuse/PART: whatever has PART in its path fails from now on."""

    def __init__(self):
        self.repositories, self.objects, self.asked, self.refused = {}, {}, [], None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_POST = do_PUT = do_GET

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def answer(self, request):
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        path = request.path.partition("?")[0].replace("%2F", "/")
        self.asked.append(f"{request.command} {path}")
        token = (request.headers.get("authorization") or "").removeprefix("Bearer ")
        status, headers, content = self.route(request.command, path, token, body)
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"content-type": "application/json", **headers}
        request.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)

    def route(self, method, path, token, body):
        """Status, headers and content of an answer."""
        if path.startswith("/refuse/"):
            self.refused = path.removeprefix("/refuse/")
            return 200, {}, {}
        if self.refused and self.refused in path:
            return _refusal(503, "out of order")
        if token not in ("", TOKEN):
            return _refusal(401, "Invalid credentials in Authorization header")
        if path == "/api/validate-yaml":
            yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            return 200, {}, {"errors": [], "warnings": []}
        if method == "PUT" and (found := re.fullmatch(r"/objects/(\w+)", path)):
            self.objects[found[1]] = body
            return 200, {}, {}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        found = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?(?:/([a-z-]+)/(.+))?", path)
        if not found:
            return _refusal(404, "no such page")
        name, action, rest = found.groups()
        repository = self.repositories.get(name)
        if repository is None or (repository.is_private and not token):
            return _refusal(404 if token else 401, "Repository not found", "RepoNotFound")
        method = "get" if method == "HEAD" else method.lower()
        return getattr(self, f"{action or 'revision'}_{method}")(repository, rest or "main", body)

    def create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "me":
            return _refusal(403, "You don't have the rights to create a model under this namespace")
        there = {"url": f"{self.url}/{name}", "id": name}
        if name in self.repositories:
            return 409, {}, {"error": "You already created this model repo", **there}
        is_private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repositories[name] = Repository({}, is_private=is_private)
        return 200, {}, there

    def preupload_post(self, repository, revision, body):
        modes = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
            modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None})
        return 200, {}, {"files": modes}

    def info_post(self, repository, rest, body):
        """info/lfs/objects/batch: where large files are put."""
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"href": f"{self.url}/objects/{wanted['oid']}", "header": {}}
            objects.append({**wanted, "actions": {"upload": upload}})
        return 200, {"content-type": "application/vnd.git-lfs+json"}, {"transfer": "basic", "objects": objects}

    def commit_post(self, repository, revision, body):
        added = {}
        for line in map(json.loads, body.splitlines()):
            file = line["value"]
            if line["key"] == "file":
                added[file["path"]] = base64.b64decode(file["content"])
            if line["key"] == "lfsFile":
                added[file["path"]] = self.objects[file["oid"]]
        sha = repository.commit(added)
        return 200, {}, {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/x/y/commit/{sha}"}

    def revision_get(self, repository, revision, body):
        sha = repository.resolve(revision)
        if sha is None:
            return _refusal(404, "Invalid rev id", "RevisionNotFound")
        siblings = [{"rfilename": path} for path in repository.files(sha)]
        return 200, {}, {"id": "x/y", "sha": sha, "private": repository.is_private, "siblings": siblings}

    def tree_get(self, repository, revision, body):
        files = []
        for path, content in repository.files(revision).items():
            files.append({"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()})
        return 200, {}, files

    def resolve_get(self, repository, rest, body):
        revision, _, path = rest.partition("/")
        content = repository.files(revision).get(path)
        if content is None:
            return _refusal(404, "Entry not found", "EntryNotFound")
        headers = {"x-repo-commit": repository.resolve(revision), "etag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return 200, headers, content


def _refusal(status, message, code=None):
    headers = {"x-error-message": message} | ({"x-error-code": code} if code else {})
    return status, headers, {"error": message}
