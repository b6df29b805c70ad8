#!/bin/sh
# Gate a candidate in any CI system.
#
#   gate.sh REFERENCE CANDIDATE TEXT GATE OUT    validate, and judge by GATE
#   gate.sh REPORT GATE OUT                      judge a report again; needs no model
#
# OUT gets report.json, report.md, report.html and junit.xml. On GitHub report.md becomes the job
# summary. INCONCLUSIVE=skipped (or error) says what junit.xml shall make of an undecided check.
#
# Ends with the verdict: 0 pass, 1 fail, 2 usage, 3 could not be evaluated, 4 inconclusive. Nothing
# is piped, because a pipe would end with the code of its last command.
set -u

shown="--junit-inconclusive ${INCONCLUSIVE:-failure}"
case $# in
  5) out=$5 ;;
  3) out=$3 ;;
  *) echo "usage: $0 REFERENCE CANDIDATE TEXT GATE OUT, or REPORT GATE OUT" >&2; exit 2 ;;
esac
if [ -e "$out" ]; then
  echo "$out exists: an old report must not pass for a new one" >&2
  exit 2
fi

# shellcheck disable=SC2086 # two words
if [ $# -eq 5 ]; then
  camelpress validate "$1" "$2" --text "$3" --gate "$4" --out "$out" $shown
else
  camelpress gate "$1" --gate "$2" --out "$out" $shown
fi
code=$?

if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
  if [ -f "$out/report.md" ]; then
    cat "$out/report.md" >> "$GITHUB_STEP_SUMMARY"
  else
    echo "## ! ERROR: nothing was judged (exit code $code), see the log" >> "$GITHUB_STEP_SUMMARY"
  fi
fi
exit $code
