# Progress messages on standard error: what a script is doing, and for how long. Sourced by the
# scripts of this directory:
#
#   . ci/progress.sh NAME    in the root of the tree; NAME begins every message
#
# A script declares its steps and runs them at its end:
#
#   step "format" cargo fmt --all --check
#   step "lints" cargo clippy
#   run_steps
#
# This prints:
#
#   ci/test: step 1 of 2: format (elapsed 00:00)
#   ci/test: step 1 of 2: format: done in 00:03
#
# The total is the number of declared steps, so it is never out of date. A step that fails ends the
# script with its exit status.
# shellcheck shell=bash
script=$1

# Scripts call each other: `elapsed` counts from the start of the outermost one.
: "${CI_STARTED:=$EPOCHSECONDS}"
export CI_STARTED

say() { echo "$script: $*" >&2; }
die() { say "$*"; exit 1; }

minutes() { printf '%02d:%02d' $(($1 / 60)) $(($1 % 60)); } # minutes SECONDS: as MM:SS

# What `timed` is running, the innermost last.
running=()
report_failure() {
  local status=$?
  if [ ${#running[@]} -gt 0 ]; then
    say "${running[-1]}: failed (elapsed $(minutes $((EPOCHSECONDS - CI_STARTED))))"
  fi
  return $status
}
trap report_failure EXIT

timed() { # timed WHAT COMMAND...: run COMMAND, announce it, and print its duration at its end
  local what=$1 began=$EPOCHSECONDS status; shift
  say "$what (elapsed $(minutes $((began - CI_STARTED))))"
  running+=("$what")
  # Not in a condition: that would turn `set -e` off in a COMMAND that is a function.
  "$@"
  status=$?
  unset 'running[-1]'
  if [ $status = 0 ]; then say "$what: done in $(minutes $((EPOCHSECONDS - began)))"; fi
  return $status
}

step_names=() step_commands=()
step() { # step NAME COMMAND...: declare a step
  step_names+=("$1"); shift
  step_commands+=("${*@Q}")
}
run_steps() { # run_steps: run the declared steps in their order
  local index
  for index in "${!step_names[@]}"; do
    timed "step $((index + 1)) of ${#step_names[@]}: ${step_names[index]}" \
      eval "${step_commands[index]}"
  done
}
