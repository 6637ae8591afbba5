#!/usr/bin/env bash
# A cloud in a folder: one TPU of two workers, whose shells are run here. $CLOUD/calls has every call.
# $CLOUD/fate has a line for each time that somebody follows a run: done, drop (the connection
# breaks, the run goes on), kill (every run that has not ended) or preempt (the machine and its disks are gone).
set -euo pipefail
printf '%q ' gcloud "$@" >>"$CLOUD/calls"
echo >>"$CLOUD/calls"

shift 2 # compute tpus
kind=$1 verb=$2
shift 2
command="" worker=0
for word in "$@"; do
  [[ ${before:-} == --command ]] && command=$word
  [[ $word == --worker=* ]] && worker=${word#*=}
  before=$word
done

boot() {
  echo READY >"$CLOUD/node"
  for number in 0 1; do
    mkdir -p "$CLOUD/worker$number/l2s_jax/.venv/bin"
    cp "$CLOUD/l2s" "$CLOUD/worker$number/l2s_jax/.venv/bin/l2s"
  done
}

on_worker() {
  # Installing is not what is tried here.
  [[ $command == *"make install"* || $command == *apt-get* ]] && return
  # </dev/null: as over ssh, nothing that is left behind holds the caller's streams. Nor does a
  # worker see the caller's environment.
  (cd "$CLOUD/worker$1" &&
    env -i PATH="$PATH" HOME="$PWD" CLOUD="$CLOUD" timeout 60 bash -c "$command" </dev/null)
}

missing() {
  echo "ERROR: (gcloud) NOT_FOUND: Resource was not found" >&2
  exit 1
}

if [[ -f $CLOUD/silent ]]; then
  echo "no network" >&2
  exit 1
fi

case "$kind $verb" in
  "tpu-vm create") boot ;;
  "tpu-vm describe")
    found=$(cat "$CLOUD/node" 2>/dev/null) || missing
    if [[ $found == CREATING ]]; then boot; fi # ready after the first look
    echo "$found"
    ;;
  "tpu-vm delete") rm -rf "$CLOUD/node" "$CLOUD"/worker? ;;
  "queued-resources create") echo WAITING_FOR_RESOURCES >"$CLOUD/queue" ;;
  "queued-resources describe")
    cat "$CLOUD/queue" 2>/dev/null || missing
    # It becomes a machine after the first look.
    if [[ $(cat "$CLOUD/queue") == WAITING_FOR_RESOURCES ]]; then
      echo ACTIVE >"$CLOUD/queue"
      boot
    fi
    ;;
  "queued-resources delete") rm -rf "$CLOUD/queue" "$CLOUD/node" "$CLOUD"/worker? ;;
  # $CLOUD/scp_fails has a line for each copy that does not arrive.
  "tpu-vm scp")
    if [[ -s $CLOUD/scp_fails ]]; then
      sed -i 1d "$CLOUD/scp_fails"
      exit 1
    fi
    cp "$1" "$2" "$CLOUD/worker0"
    cp "$1" "$2" "$CLOUD/worker1"
    ;;
  "tpu-vm ssh")
    [[ $(cat "$CLOUD/node") == READY ]]
    if [[ $command == *"tail -n +1 -F"* ]]; then
      fate=$(head -1 "$CLOUD/fate")
      sed -i 1d "$CLOUD/fate"
      for number in 0 1; do # both have begun
        until grep -qs step "$CLOUD/worker$number/l2s_jax/run.log"; do sleep 0.05; done
      done
      if [[ $fate == preempt ]]; then
        rm -rf "$CLOUD"/worker?
        echo PREEMPTED >"$CLOUD/node"
        [[ ! -f $CLOUD/queue ]] || echo SUSPENDED >"$CLOUD/queue"
      fi
      if [[ $fate == kill ]]; then
        for number in 0 1; do
          kill -9 -- "-$(cat "$CLOUD/worker$number/l2s_jax/run.pid")" 2>/dev/null || true
        done
      fi
      [[ $fate == "done" ]] || exit 255
    fi
    if [[ $worker == all ]]; then
      on_worker 0
      on_worker 1
    else
      on_worker "$worker"
    fi
    ;;
  *)
    echo "unknown: $kind $verb" >&2
    exit 2
    ;;
esac
