#!/usr/bin/env bash
# A TPU VM with l2s on it, running one verb: see launch/README.md. Environment only.
set -euo pipefail

usage() {
  echo "usage: launch/tpu_vm.sh [--dry-run] NAME ZONE TYPE VERB [options of l2s VERB]" >&2
  exit 2
}

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi
[[ $# -ge 4 ]] || usage
name=$1 zone=$2 type=$3
shift 3
verb=$(printf '%q ' "$@")
image=${L2S_TPU_IMAGE:-v2-alpha-tpuv5-lite}
read -ra flags <<<"${L2S_TPU_FLAGS:-}"

cd "$(dirname "$0")/.."
tpu=(gcloud compute tpus tpu-vm)
here=(--zone "$zone")

run() {
  printf '+ ' >&2
  printf '%q ' "$@" >&2
  echo >&2
  $dry_run || "$@"
}

on_workers() { run "${tpu[@]}" ssh "$name" "${here[@]}" --worker=all --command "$1"; }

exists() { "${tpu[@]}" describe "$name" "${here[@]}" >/dev/null 2>&1; }

num_hosts() {
  "${tpu[@]}" describe "$name" "${here[@]}" --format='value(networkEndpoints.len())'
}

if $dry_run || ! exists; then
  run "${tpu[@]}" create "$name" "${here[@]}" --accelerator-type "$type" --version "$image" \
    ${flags[@]+"${flags[@]}"}
fi

if ! $dry_run && [[ $(num_hosts) != 1 ]]; then
  echo "launch/tpu_vm.sh: $name has $(num_hosts) hosts, this version runs on one." \
    "Choose a TYPE with one host, such as v5litepod-8." >&2
  exit 2
fi

# What is committed, and nothing else: a result must be reproducible from a commit.
archive=$(mktemp -t l2s_jax.XXXXXX)
trap 'rm -f "$archive"' EXIT
run git archive --format=tar.gz --output "$archive" HEAD
run "${tpu[@]}" scp "$archive" "$name:l2s_jax.tar.gz" "${here[@]}" --worker=all

on_workers 'mkdir -p l2s_jax && tar -xzf l2s_jax.tar.gz -C l2s_jax'
# The images of Google hold Python 3.10; Ubuntu has 3.11 beside it.
on_workers 'command -v python3.11 || (sudo apt-get update -q && sudo apt-get install -qy python3.11-venv)'
on_workers 'cd l2s_jax && make install && .venv/bin/pip install -qq -c constraints.txt -e ".[tpu]"'
on_workers "cd l2s_jax && .venv/bin/l2s $verb"

$dry_run && exit
echo "Results are on the TPU VM. Fetch them, then delete it:" >&2
echo "  gcloud compute tpus tpu-vm scp --recurse $name:l2s_jax/runs . --zone $zone" >&2
echo "  gcloud compute tpus tpu-vm delete $name --zone $zone" >&2
