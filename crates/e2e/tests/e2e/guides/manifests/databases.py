"""A small operator: a StatefulSet, a Service and a CronJob of backups for each PostgreSQL object.

It looks at all objects again and again, as long watches allow, and says what it wants by server-side apply, so that it
can be killed at any line.
"""

import json
import ssl
import urllib.request

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount/"
OBJECTS = "/apis/database.example.com/v1/postgresqls"
TLS = ssl.create_default_context(cafile=ACCOUNT + "ca.crt")


def call(method, path, body=None, content="application/json"):
    with open(ACCOUNT + "token") as token:
        headers = {"Authorization": "Bearer " + token.read(), "Content-Type": content}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request("https://kubernetes.default.svc" + path, data, headers, method=method)
    return urllib.request.urlopen(request, context=TLS)


def apply(group, namespace, plural, wanted):
    path = f"{group}/namespaces/{namespace}/{plural}/{wanted['metadata']['name']}"
    query = "?fieldManager=postgresql-operator&force=true"
    return json.load(call("PATCH", path + query, wanted, "application/apply-patch+yaml"))


def reconcile(database):
    name, namespace = database["metadata"]["name"], database["metadata"]["namespace"]
    spec = database["spec"]
    image = "postgres:" + spec["version"]
    owner = {key: database[key] for key in ("apiVersion", "kind")}
    owner |= {"name": name, "uid": database["metadata"]["uid"], "controller": True}
    labels = {"postgresql": name}

    def of(version, kind, suffix, content):
        metadata = {"name": name + suffix, "labels": labels, "ownerReferences": [owner]}
        return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": content}

    service = {"clusterIP": "None", "selector": labels, "ports": [{"port": 5432}]}
    apply("/api/v1", namespace, "services", of("v1", "Service", "", service))
    container = {
        "name": "postgres",
        "image": image,
        "env": [{"name": "POSTGRES_PASSWORD", "value": "postgres"}],
        "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgresql/data"}],
    }
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": spec["storage"]}}}
    pods = {
        "serviceName": name,
        "replicas": spec["replicas"],
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"},
    }
    running = apply("/apis/apps/v1", namespace, "statefulsets", of("apps/v1", "StatefulSet", "", pods))
    if spec.get("backupSchedule"):
        dump = {"name": "dump", "image": image, "command": ["pg_dumpall", "-h", f"{name}-0.{name}", "-U", "postgres"]}
        backup = {
            "schedule": spec["backupSchedule"],
            "jobTemplate": {"spec": {"template": {"spec": {"containers": [dump], "restartPolicy": "Never"}}}},
        }
        apply("/apis/batch/v1", namespace, "cronjobs", of("batch/v1", "CronJob", "-backup", backup))

    ready = running.get("status", {}).get("readyReplicas", 0)
    status = {
        "phase": "Running" if ready == spec["replicas"] else "Pending",
        "primaryEndpoint": f"{name}-0.{name}.{namespace}.svc.cluster.local:5432",
        "replicas": ready,
    }
    if database.get("status") != status:
        path = f"/apis/database.example.com/v1/namespaces/{namespace}/postgresqls/{name}"
        call("PATCH", path, {"status": status}, "application/merge-patch+json")


while True:
    objects = json.load(call("GET", OBJECTS))
    for item in objects["items"]:
        if "deletionTimestamp" not in item["metadata"]:
            reconcile({"apiVersion": "database.example.com/v1", "kind": "PostgreSQL"} | item)
    version = objects["metadata"]["resourceVersion"]
    # Returns with the first change, or after a second, because StatefulSets are not watched.
    call("GET", f"{OBJECTS}?watch=true&resourceVersion={version}&timeoutSeconds=1").readline()
