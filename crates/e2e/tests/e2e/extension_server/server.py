"""A server that extends a cluster: admission webhooks, conversion of a custom kind, an aggregated API, metrics."""

import base64
import json
import ssl
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

GROUP, VERSION = "wardle.example.com", "v1alpha1"
flunders = {}
revision = 1
metrics = {"http_requests": "10", "queue_length": "30"}
lock = threading.Lock()


def admit(path, review):
    request = review["request"]
    response = {"uid": request["uid"], "allowed": True}
    meta = (request.get("object") or request.get("oldObject") or {}).get("metadata", {})
    if path == "/mutate":
        patch = []
        if not meta.get("labels"):
            patch.append({"op": "add", "path": "/metadata/labels", "value": {}})
        patch.append({"op": "add", "path": "/metadata/labels/seen-by", "value": "webhook"})
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(json.dumps(patch).encode()).decode()
        response["warnings"] = ["labelled by the webhook"]
    elif path == "/slow":
        time.sleep(5)
    elif path == "/deny" or "forbidden" in meta.get("name", ""):
        response["allowed"] = False
        response["status"] = {"code": 403, "reason": "Forbidden", "message": "the test forbids it"}
    return {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}


def convert(review):
    """host:port in v1, host and port in v2."""
    request = review["request"]
    wanted = request["desiredAPIVersion"]
    converted = []
    for o in request["objects"]:
        o = dict(o, apiVersion=wanted)
        if wanted.endswith("/v2") and "hostPort" in o:
            o["host"], o["port"] = o.pop("hostPort").split(":")
        elif wanted.endswith("/v1") and "host" in o:
            o["hostPort"] = o.pop("host") + ":" + o.pop("port")
        converted.append(o)
    response = {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": converted}
    return {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}


def not_found(name):
    message = f'flunders.{GROUP} "{name}" not found'
    return 404, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
                 "reason": "NotFound", "details": {"name": name, "group": GROUP, "kind": "flunders"}, "code": 404}


def resources(group_version, resources):
    return 200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def api(method, path, query, body, user):
    global revision
    parts = path.strip("/").split("/")[1:]
    group = {"name": GROUP, "versions": [{"groupVersion": f"{GROUP}/{VERSION}", "version": VERSION}],
             "preferredVersion": {"groupVersion": f"{GROUP}/{VERSION}", "version": VERSION}}
    if not parts:
        return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}
    if parts[0].endswith(".metrics.k8s.io"):
        return metric(parts, query)
    if parts == [GROUP]:
        return 200, dict(group, kind="APIGroup", apiVersion="v1")
    if parts == [GROUP, VERSION]:
        return resources(f"{GROUP}/{VERSION}", [
            {"name": "flunders", "singularName": "flunder", "namespaced": True, "kind": "Flunder",
             "verbs": ["create", "delete", "get", "list"], "shortNames": ["fl"]}])
    if len(parts) < 5 or parts[4] != "flunders":
        return not_found(path)
    namespace, name = parts[3], parts[5] if len(parts) > 5 else ""
    with lock:
        if method == "GET" and not name:
            items = [o for (ns, _), o in sorted(flunders.items()) if ns == namespace]
            return 200, {"kind": "FlunderList", "apiVersion": f"{GROUP}/{VERSION}",
                         "metadata": {"resourceVersion": str(revision)}, "items": items}
        if method == "POST":
            revision += 1
            o = dict(json.loads(body), kind="Flunder", apiVersion=f"{GROUP}/{VERSION}")
            o["metadata"].update({"namespace": namespace, "uid": str(uuid.uuid4()), "resourceVersion": str(revision),
                                  "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                                  "annotations": {"made-by": user}})
            flunders[(namespace, o["metadata"]["name"])] = o
            return 201, o
        if (namespace, name) not in flunders:
            return not_found(name)
        if method == "DELETE":
            del flunders[(namespace, name)]
            return 200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                         "details": {"name": name, "group": GROUP, "kind": "flunders"}}
        return 200, flunders[(namespace, name)]


def metric(parts, query):
    """custom.metrics.k8s.io/v1beta2 and external.metrics.k8s.io/v1beta1."""
    group_version, now = "/".join(parts[:2]), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if len(parts) == 2:
        return resources(group_version, [{"name": "pods/http_requests", "singularName": "", "namespaced": True,
                                          "kind": "MetricValueList", "verbs": ["get"]}])
    value, namespace = metrics.get(parts[-1], "0"), parts[3]
    if parts[0].startswith("external"):
        return 200, {"kind": "ExternalMetricValueList", "apiVersion": group_version, "metadata": {}, "items": [
            {"metricName": parts[-1], "metricLabels": {}, "timestamp": now, "value": value}]}
    names = [parts[5]] if parts[5] != "*" else metrics.get("pods", "").split(",")
    kind = "Pod" if parts[4] == "pods" else "Service"
    items = [{"describedObject": {"kind": kind, "namespace": namespace, "name": name, "apiVersion": "v1"},
              "metric": {"name": parts[-1]}, "timestamp": now, "value": value} for name in names if name]
    return 200, {"kind": "MetricValueList", "apiVersion": group_version, "metadata": {}, "items": items}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        url = urlparse(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        if path.startswith("/apis"):
            # Only the API server has a certificate of the authority for proxies.
            subject = dict(pair for rdn in (self.connection.getpeercert() or {}).get("subject", ()) for pair in rdn)
            user = self.headers.get("X-Remote-User", "")
            if subject.get("commonName") != "front-proxy-client" or not user:
                code, value = 401, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 401,
                                    "reason": "Unauthorized", "message": "Unauthorized"}
            else:
                code, value = api(self.command, path, query, body, user)
        elif path == "/convert":
            code, value = 200, convert(json.loads(body))
        elif self.command == "PUT":
            metrics.update(json.loads(body))
            code, value = 200, metrics
        elif self.command == "POST":
            code, value = 200, admit(path, json.loads(body))
        else:
            code, value = 404, {}
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = answer


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def finish_request(self, request, client_address):
        # Each in its thread: a client that says nothing must not keep others out.
        request.do_handshake()
        super().finish_request(request, client_address)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
context.load_verify_locations("/tls/ca.crt")
context.verify_mode = ssl.CERT_OPTIONAL
server = Server(("", 8443), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print("serving", flush=True)
server.serve_forever()
