#!/bin/bash
# Runs one long step of the build and says how long it takes: `scripts/step.sh "what it is" COMMAND...`.
# A step that is quiet for long still shows a line every 15 seconds; a step that was quick shows one line.
set -uo pipefail

label=$1
shift
started=$SECONDS

printf '==> %s\n' "$label"
(
    # Waits on a pipe that nobody writes to: unlike a `sleep`, that leaves no process behind when this one is ended.
    exec {silence}<> <(:)
    while ! read -r -t 15 -u "$silence" && kill -0 $$ 2>/dev/null; do
        printf '    ... %s: %d s\n' "$label" $((SECONDS - started))
    done
) &
ticker=$!
"$@"
status=$?
kill "$ticker" 2>/dev/null
wait "$ticker" 2>/dev/null
if [ "$status" = 0 ]; then
    printf '    %s: done in %d s\n' "$label" $((SECONDS - started))
else
    printf '    %s: FAILED with status %d after %d s: %s\n' "$label" "$status" $((SECONDS - started)) "$*" >&2
fi
exit "$status"
