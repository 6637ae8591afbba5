#!/usr/bin/env bash
# One verb of l2s as a workload on a GKE cluster, through xpk: see launch/README.md.
# Environment only: what is trained, and how, is in configs/.
set -euo pipefail

usage() {
  cat >&2 <<'END'
usage: launch/xpk.sh [--dry-run] run    NAME CLUSTER ZONE TYPE VERB [options of l2s VERB]
       launch/xpk.sh [--dry-run] wait   NAME CLUSTER ZONE
       launch/xpk.sh [--dry-run] delete NAME CLUSTER ZONE
L2S_IMAGE names the container image (REGISTRY/NAME:TAG) that run builds and pushes.
END
  exit 2
}

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi
[[ $# -ge 4 ]] || usage
command=$1 name=$2
at=(--cluster "$3" --zone "$4")
shift 4
cd "$(dirname "$0")/.."

run() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  echo >&2
  $dry_run || "$@"
}

# What is committed, and nothing else: a result must be reproducible from a commit.
build() {
  local context
  context=$(mktemp -d -t l2s_jax.XXXXXX)
  run git archive --format=tar --output "$context/l2s_jax.tar" HEAD
  run tar -xf "$context/l2s_jax.tar" -C "$context"
  run docker build --platform linux/amd64 --file "$context/launch/Dockerfile" --tag "$L2S_IMAGE" "$context"
  run docker push "$L2S_IMAGE"
  rm -rf "$context"
}

create() {
  local type=$1 verb slices=${L2S_SLICES:-1}
  shift
  verb=$(printf '%q ' "$@")
  # Restarts go on from the last checkpoint; those are what a lost machine and a stop end in. The
  # grace is what a run needs for its last checkpoint.
  run xpk workload create --workload "$name" "${at[@]}" --tpu-type "$type" --num-slices "$slices" \
    --docker-image "$L2S_IMAGE" --env-file launch/workload.env \
    --max-restarts "${L2S_RESTARTS:-5}" --restart-on-user-code-failure \
    --termination-grace-period-seconds 60 --command "l2s ${verb% }"
}

case $command in
  run)
    [[ $# -ge 2 ]] || usage
    if [[ -z ${L2S_IMAGE:-} ]]; then
      echo "launch/xpk.sh: L2S_IMAGE is not set: name the image, such as REGISTRY/l2s:TAG." >&2
      exit 2
    fi
    build
    create "$@"
    ;;
  wait)
    [[ $# -eq 0 ]] || usage
    run xpk workload list "${at[@]}" --wait-for-job-completion "$name"
    ;;
  delete)
    [[ $# -eq 0 ]] || usage
    run xpk workload delete --workload "$name" "${at[@]}" --force
    ;;
  *) usage ;;
esac
