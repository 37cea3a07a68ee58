"""Create a RayJob, wait until it has ended, and exit as it did. Runs in a pod; needs Python and PyYAML, which the image has.

    python launch.py rayjob.yaml

A RayJob of the same name that still runs is waited for: a launcher that was restarted starts no second run. One that has ended
is deleted first. `{date}` in the entrypoint becomes the day (UTC), which stays through all retries of the job. Exits with 0 if
the job succeeded, 1 if it failed, 2 if the API server refused something.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

ACCOUNT = Path(os.environ.get("LAUNCH_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
SERVER = os.environ.get("LAUNCH_SERVER") or "https://{KUBERNETES_SERVICE_HOST}:{KUBERNETES_SERVICE_PORT}".format_map(
    {name: os.environ.get(name, "") for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")}
)
POLL_SECONDS = float(os.environ.get("LAUNCH_POLL_SECONDS", "15"))
PATIENCE = 20  # polls in a row that may fail: an API server is upgraded at night, too
ENDED = {"Complete", "Failed"}


def call(method: str, path: str, body: Any = None) -> Any:
    """One request to the API server; None for 404."""
    request = urllib.request.Request(
        SERVER + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {(ACCOUNT / 'token').read_text().strip()}"},
    )
    authority = ACCOUNT / "ca.crt"
    context = ssl.create_default_context(cafile=str(authority)) if authority.exists() else None
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def state(job: Any) -> str:
    return str(job.get("status", {}).get("jobDeploymentStatus", ""))


def report(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def launch(job: dict[str, Any]) -> int:
    name = job["metadata"]["name"]
    place = f"/apis/ray.io/v1/namespaces/{(ACCOUNT / 'namespace').read_text().strip()}/rayjobs"
    there = call("GET", f"{place}/{name}")
    if there is not None and state(there) in ENDED:
        report("deleting", rayjob=name, state=state(there))
        call("DELETE", f"{place}/{name}")
        while call("GET", f"{place}/{name}") is not None:
            time.sleep(POLL_SECONDS)
        there = None
    if there is None:
        spec = job["spec"]
        spec["entrypoint"] = spec["entrypoint"].replace("{date}", time.strftime("%Y-%m-%d", time.gmtime()))
        call("POST", place, job)
        report("created", rayjob=name)
    else:
        report("found", rayjob=name, state=state(there))
    last, failed = "", 0
    while True:
        time.sleep(POLL_SECONDS)
        try:
            found = call("GET", f"{place}/{name}")
            failed = 0
        except OSError as error:
            failed += 1
            if failed > PATIENCE:
                raise
            report("unreachable", rayjob=name, error=type(error).__name__)
            continue
        if found is None:
            report("gone", rayjob=name, message="it was deleted while it ran")
            return 1
        if state(found) != last:
            last = state(found)
            status = found["status"]
            report("state", rayjob=name, state=last, reason=status.get("reason", ""), job=status.get("jobStatus", ""))
        if last in ENDED:
            return 0 if last == "Complete" and found["status"].get("jobStatus") == "SUCCEEDED" else 1


if __name__ == "__main__":
    try:
        sys.exit(launch(yaml.safe_load(Path(sys.argv[1]).read_text())))
    except urllib.error.HTTPError as error:
        report("refused", status=error.code, message=error.read().decode(errors="replace")[:500])
        sys.exit(2)
