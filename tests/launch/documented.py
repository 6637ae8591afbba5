"""The flags that the commands of `launch/` are documented with, and a check against them.

gcloud: SYNOPSIS of each command in the Google Cloud CLI reference (cloud.google.com/sdk/gcloud/
reference/compute/tpus/...), the same as `gcloud ... --help` of release 528.0.0; `--zone` comes with
the positional resource, and the last entry of GCLOUD_WIDE that we use is `--quiet`. xpk: the
argument parser in src/xpk/parser/workload.py and common.py of AI-Hypercomputer/xpk at 01b0557.
docker: the CLI reference (docs.docker.com/reference/cli/docker/...). Read on 2026-11-26.
"""

import shlex

GCLOUD_WIDE = """--account --billing-project --configuration --flags-file --flatten --format --help
--impersonate-service-account --log-http --project --quiet --trace-token --user-output-enabled
--verbosity"""

MACHINE = """--zone --async --data-disk --description --internal-ips --labels --metadata
--metadata-from-file --network --range --reserved --scopes --service-account --shielded-secure-boot
--spot --subnetwork --tags --accelerator-type --topology --type"""

SSH = """--zone --dry-run --force-key-file-overwrite --internal-ip --plain --ssh-key-file
--strict-host-key-checking --worker --ssh-key-expiration --ssh-key-expire-after"""

XPK = "--project --zone --dry-run --skip-validation --quiet --cluster"

FLAGS = {
    "gcloud compute tpus tpu-vm create": f"{MACHINE} --version --preemptible --queue-count",
    "gcloud compute tpus tpu-vm describe": "--zone",
    "gcloud compute tpus tpu-vm delete": "--zone --async",
    "gcloud compute tpus tpu-vm ssh": f"{SSH} --ssh-flag --command --output-directory",
    "gcloud compute tpus tpu-vm scp": f"{SSH} --scp-flag --compress --recurse",
    "gcloud compute tpus queued-resources create": f"""{MACHINE} --runtime-version --node-id
        --node-count --node-prefix --guaranteed --valid-after-duration --valid-after-time
        --valid-until-duration --valid-until-time --reservation-host-folder
        --reservation-host-organization --reservation-host-project""",
    "gcloud compute tpus queued-resources describe": "--zone",
    "gcloud compute tpus queued-resources delete": "--zone --async --force",
    "xpk workload create": f"""{XPK} --workload --command --tpu-type --device-type --num-nodes
        --scheduler --debug-dump-gcs --deploy-stacktrace-sidecar --on-demand --reservation --spot
        --docker-name --num-slices --priority --max-restarts --ttl-seconds-after-finished
        --termination-grace-period-seconds --enable-debug-logs --restart-on-user-code-failure
        --ramdisk-directory --mtc_enabled --env-file --env --base-docker-image --script-dir
        --docker-image --use-vertex-tensorboard --experiment-name""",
    "xpk workload list": f"""{XPK} --filter-by-status --filter-by-job --wait-for-job-completion
        --timeout""",
    "xpk workload delete": f"{XPK} --workload --filter-by-job --filter-by-status --force",
    "docker build": "--file --tag --build-arg --platform --push --target --no-cache",
    "docker push": "--all-tags --quiet --disable-content-trust",
}

REQUIRED = {
    "gcloud compute tpus tpu-vm create": "--zone --version",
    "gcloud compute tpus queued-resources create": """--zone --runtime-version --accelerator-type
        --node-id""",
    "xpk workload create": "--workload --cluster --tpu-type --command",
    "xpk workload list": "--cluster",
    "xpk workload delete": "--cluster",
}

OURS = ("git archive", "tar -xf")  # what every machine has


def printed(said: str) -> list[list[str]]:
    """The commands that a script printed, each as its words."""
    return [shlex.split(line[2:]) for line in said.splitlines() if line.startswith("+ ")]


def check(words: list[str]) -> str:
    """The command's name in the table; AssertionError for a flag that is not documented."""
    line = " ".join(words)
    [name] = [name for name in (*FLAGS, *OURS) if line.startswith(name + " ")]
    if name in OURS:
        return name
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    known = set(FLAGS[name].split())
    if name.startswith("gcloud"):
        known |= set(GCLOUD_WIDE.split())
    assert given <= known, f"{name} has no {', '.join(sorted(given - known))}"
    missing = set(REQUIRED.get(name, "").split()) - given
    assert not missing, f"{name} needs {', '.join(sorted(missing))}"
    return name
