#!/usr/bin/env bash
# A TPU VM or slice with l2s on it, running one verb on all of its hosts: see launch/README.md.
# Environment only: what is trained, and how, is in configs/.
# shellcheck disable=SC2016  # what workers are told expands there
set -euo pipefail

usage() {
  cat >&2 <<'END'
usage: launch/tpu_vm.sh [--dry-run] run    NAME ZONE TYPE VERB [options of l2s VERB]
       launch/tpu_vm.sh [--dry-run] create NAME ZONE TYPE
       launch/tpu_vm.sh [--dry-run] logs   NAME ZONE [WORKER]
       launch/tpu_vm.sh [--dry-run] delete NAME ZONE
END
  exit 2
}

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi
[[ $# -ge 3 ]] || usage
command=$1 name=$2 zone=$3
shift 3

image=${L2S_TPU_IMAGE:-v2-alpha-tpuv5-lite}
queued=${L2S_TPU_QUEUED:-0}    # 1: ask for the machine in the queue
max_starts=${L2S_TPU_STARTS:-5} # of the run; each but the first after a loss of the machine
pause=${L2S_TPU_PAUSE:-30}     # seconds between two looks at the cloud
read -ra flags <<<"${L2S_TPU_FLAGS:-}"

tpu=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)
here=(--zone "$zone")
cd "$(dirname "$0")/.."

say() { echo "launch/tpu_vm.sh: $*" >&2; }

run() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  echo >&2
  $dry_run || "$@"
}

# ---- the machine ----

# What a command finds; NONE where the cloud has no such thing, UNKNOWN where it cannot be asked:
# a network that fails for a moment must not cost a machine.
look() {
  local found said
  said=$(mktemp -t l2s_said.XXXXXX)
  if found=$("$@" 2>"$said"); then
    echo "$found"
  elif grep -qiE 'not[_ ]found|does not exist' "$said"; then
    echo NONE
  else
    cat "$said" >&2
    echo UNKNOWN
  fi
  rm -f "$said"
}

state() { look "${tpu[@]}" describe "$name" "${here[@]}" --format='value(state)'; }

queue_state() { look "${queue[@]}" describe "$name" "${here[@]}" --format='value(state.state)'; }

create() {
  if [[ $queued == 1 ]]; then
    run "${queue[@]}" create "$name" "${here[@]}" --node-id "$name" --accelerator-type "$type" \
      --runtime-version "$image" ${flags[@]+"${flags[@]}"} && wait_in_queue
  else
    run "${tpu[@]}" create "$name" "${here[@]}" --accelerator-type "$type" --version "$image" \
      ${flags[@]+"${flags[@]}"}
  fi
}

wait_in_queue() {
  local found
  run "${queue[@]}" describe "$name" "${here[@]}" --format='value(state.state)'
  $dry_run && return
  while found=$(queue_state) && [[ $found != ACTIVE ]]; do
    case $found in
      FAILED | SUSPENDED | SUSPENDING | NONE)
        say "the request $name ended as $found before it became a machine"
        return 1
        ;;
    esac
    say "$name is $found"
    sleep "$pause"
  done
}

wait_until_ready() {
  local found
  while found=$(state) && [[ $found != READY ]]; do
    case $found in
      CREATING | STARTING | RESTARTING | REPAIRING | UNKNOWN) say "$name is $found" ;;
      *) return 1 ;;
    esac
    sleep "$pause"
  done
}

# A machine that was asked for by a request goes with it, whatever this shell's variables say.
delete() {
  local found=NONE
  if ! $dry_run; then found=$(queue_state); fi
  if [[ $queued == 1 || ($found != NONE && $found != UNKNOWN) ]]; then
    run "${queue[@]}" delete "$name" "${here[@]}" --force --quiet
  else
    run "${tpu[@]}" delete "$name" "${here[@]}" --quiet
  fi
}

# Leaves a machine that is READY; one that was taken away is removed and asked for again.
ensure() {
  $dry_run && { create; return; }
  case $(state) in
    READY) return ;;
    CREATING | STARTING | RESTARTING | REPAIRING)
      wait_until_ready
      return
      ;;
    UNKNOWN) return 1 ;;
    NONE)
      if [[ $queued == 1 ]]; then
        case $(queue_state) in
          NONE) ;;
          UNKNOWN) return 1 ;;
          # A request whose machine is gone keeps its name, and its share of the quota.
          ACTIVE | FAILED | SUSPENDED | SUSPENDING) delete || return ;;
          *)
            wait_in_queue
            return
            ;;
        esac
      fi
      ;;
    *) delete || return ;;
  esac
  create
}

# ---- what is on it ----

on_workers() { run "${tpu[@]}" ssh "$name" "${here[@]}" --worker=all --command "$1"; }

# For the workers whose run goes on: nothing is changed under it. One that has ended may still hold
# its number, where nobody has waited for it.
unless_going='if [ -f l2s_jax/run.pid ] && [ ! -f l2s_jax/run.exit ] && kill -0 "$(cat l2s_jax/run.pid)" 2>/dev/null; then exit 0; fi; '

# workload.env as a shell reads it; a NAME alone is handed on from here.
environment() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    case $line in
      '' | '#'*) ;;
      *=*) printf 'export %s=%q\n' "${line%%=*}" "${line#*=}" ;;
      *)
        [[ -n ${!line+set} ]] || {
          say "workload.env hands on $line, which is not set here: export it, or take the line out"
          return 1
        }
        printf 'export %s=%q\n' "$line" "${!line}"
        ;;
    esac
  done <launch/workload.env
}

# Joined by &&: whoever asks whether this has worked suspends `set -e` in it.
install() {
  # What is committed, and nothing else: a result must be reproducible from a commit.
  local folder code=0
  folder=$(mktemp -d -t l2s_jax.XXXXXX)
  environment >"$folder/l2s_jax.env" &&
    run git archive --format=tar.gz --output "$folder/l2s_jax.tar.gz" HEAD &&
    run "${tpu[@]}" scp "$folder/l2s_jax.env" "$folder/l2s_jax.tar.gz" "$name:." "${here[@]}" \
      --worker=all || code=$?
  rm -rf "$folder"
  [[ $code == 0 ]] || return "$code"
  on_workers "${unless_going}chmod 600 l2s_jax.env && mkdir -p l2s_jax && tar -xzf l2s_jax.tar.gz -C l2s_jax" &&
    # The images of Google hold Python 3.10; Ubuntu has 3.11 beside it. A new machine updates itself.
    on_workers 'command -v python3.11 || (sudo apt-get update -q && sudo apt-get -o DPkg::Lock::Timeout=300 install -qy python3.11-venv)' &&
    on_workers "${unless_going}"'cd l2s_jax && make install && .venv/bin/pip install -qq -c constraints.txt -e ".[tpu]"' &&
    { [[ -z ${L2S_TPU_SETUP:-} ]] || on_workers "$L2S_TPU_SETUP"; }
}

# ---- the run ----

# Detached, so that a connection which breaks does not end it.
start() {
  on_workers "${unless_going}cd l2s_jax && rm -f run.exit; \
nohup setsid bash -c $(printf '%q' "source ../l2s_jax.env; .venv/bin/l2s $verb; echo \$? >run.exit") \
>run.log 2>&1 </dev/null & echo \$! >run.pid"
}

# Worker 0 writes the progress; returns when the run has ended there, or the connection has.
follow() {
  run "${tpu[@]}" ssh "$name" "${here[@]}" --worker="${1:-0}" --command \
    'cd l2s_jax || exit; tail -n +1 -F run.log & until [ -f run.exit ] || ! kill -0 "$(cat run.pid)" 2>/dev/null; do sleep 1; done; sleep 1; kill $!' ||
    true
}

# The largest exit code of all workers; fails while one of them runs or cannot be reached. A run that
# is gone without a code was killed, as by a host that has restarted: 137, after which it goes on.
outcome() {
  "${tpu[@]}" ssh "$name" "${here[@]}" --worker=all --command \
    'cd l2s_jax; cat run.exit || { ! kill -0 "$(cat run.pid)" && { cat run.exit || echo 137; }; }' 2>/dev/null |
    grep -E '^[0-9]+$' | sort -n | tail -1
}

run_to_the_end() {
  local starts=0 code found
  while ((starts < max_starts)); do
    starts=$((starts + 1)) code=""
    if ! { ensure && install && start; }; then
      say "start $starts of $max_starts failed"
      $dry_run || sleep "$pause"
      continue
    fi
    follow
    if $dry_run; then
      run "${tpu[@]}" ssh "$name" "${here[@]}" --worker=all --command 'cat l2s_jax/run.exit'
      return
    fi
    # A connection may break while the run goes on.
    while found=$(state) && [[ $found == READY || $found == UNKNOWN ]]; do
      code=$(outcome) && [[ -n $code ]] && break
      sleep "$pause"
      follow
    done
    if [[ $found == READY && $code -lt 128 ]]; then
      [[ $code == 0 ]] || say "l2s ended with code $code; see run.log on the workers"
      return "$code"
    fi
    say "$name is $found${code:+, l2s ended with code $code}: going on where the run was saved"
    sleep "$pause"
  done
  say "given up after $max_starts starts; the same command goes on"
  return 1
}

remind() { say "the machine costs money until it is deleted: launch/tpu_vm.sh delete $name $zone"; }

case $command in
  run)
    [[ $# -ge 2 ]] || usage
    type=$1
    shift
    verb=$(printf '%q ' "$@")
    verb=${verb% }
    code=0
    run_to_the_end || code=$?
    remind
    exit "$code"
    ;;
  create)
    [[ $# -eq 1 ]] || usage
    type=$1
    ensure
    install
    remind
    ;;
  logs)
    [[ $# -le 1 ]] || usage
    follow "${1:-0}"
    ;;
  delete)
    [[ $# -eq 0 ]] || usage
    delete
    ;;
  *) usage ;;
esac
