#!/bin/bash
# Runs every test: `scripts/run-tests.sh`. The hardware lane, which is one emulated machine after the other, runs beside all others; its
# output comes at the end, whole.
#
# The lane shares nothing with the rest: its pods are inside its machines, and its files have a folder of their own, so that tests
# which count what is left on this host do not count them.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lane_test=containers_run_on_hardware_kvm_with_two_vcpus
lane_log=target/hardware-lane.log
lane_files=$PWD/target/hardware-lane

# With --workspace also where one program is meant: another choice of packages is another choice of features, and compiled anew.
cargo test --workspace --no-run || exit

rm -rf "$lane_files"
mkdir -p "$lane_files"
TMPDIR=$lane_files cargo test --workspace --test hardware_lane -- "$lane_test" --nocapture >"$lane_log" 2>&1 &
lane=$!
# An interrupted run takes its machines along: they end with the program that started them.
trap 'kill "$lane" 2>/dev/null' EXIT

status=0
cargo test --workspace --no-fail-fast -- --skip "$lane_test" || status=$?

echo "The hardware lane:"
wait "$lane" || status=$?
cat "$lane_log"
exit "$status"
