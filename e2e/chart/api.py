#!/usr/bin/env python3
"""e2e/chart/api.py FILE: an API server for Helm's lookups alone. It has the objects of FILE (JSON, a list), and prints its port."""
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PLURALS = {"CustomResourceDefinition": "customresourcedefinitions", "Lease": "leases"}
GROUPS = {"apiextensions.k8s.io": ("CustomResourceDefinition", False), "coordination.k8s.io": ("Lease", True)}


def path_of(thing):
    namespace = thing["metadata"].get("namespace")
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{thing['apiVersion']}{place}/{PLURALS[thing['kind']]}/{thing['metadata']['name']}"


with open(sys.argv[1], encoding="utf-8") as file:
    answers = {path_of(thing): thing for thing in json.load(file)}
answers["/version"] = {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
answers["/api"] = {"kind": "APIVersions", "versions": ["v1"]}
answers["/api/v1"] = {"kind": "APIResourceList", "groupVersion": "v1", "resources": []}
groups = []
for group, (kind, namespaced) in GROUPS.items():
    version = {"groupVersion": f"{group}/v1", "version": "v1"}
    groups.append({"name": group, "versions": [version], "preferredVersion": version})
    resource = {"name": PLURALS[kind], "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]}
    answers[f"/apis/{group}/v1"] = {"kind": "APIResourceList", "groupVersion": f"{group}/v1", "resources": [resource]}
answers["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound", "code": 404}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        answer = answers.get(self.path.split("?")[0])
        body = json.dumps(answer or NOT_FOUND).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
