#!/bin/sh
# Runs a command, for example from cron, and sends its exit code, this machine's name and the end of its output.
#
#   run-and-notify.sh NAME COMMAND [ARGUMENT]...
#
#   # crontab: back up every night, and tell ops
#   0 3 * * * CHAT_URL=https://chat.example /opt/chat/run-and-notify.sh ops /opt/backup.sh
#
# Needs notify.sh in the same folder, whose variables set the address, the token and the times.
#
# Exits with the code of the command. If the message cannot be sent, it writes the output of the command to
# standard error, so that cron mails it.
set -u
[ "${1:-}" != --help ] || { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0; }
[ $# -gt 1 ] || { echo "usage: ${0##*/} NAME COMMAND [ARGUMENT]..., or ${0##*/} --help" >&2; exit 2; }
# This file may have been started by a link to it.
me=$(readlink -f -- "$0" 2>/dev/null) || me=$0
name=$1
shift
output=$(mktemp) || exit 1
trap 'rm -f "$output"' EXIT

began=$(date +%s)
"$@" >"$output" 2>&1
code=$?
took=$(($(date +%s) - began))

# Writes a command such that a shell understands it again.
quoted() {
  for word; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]* | [!-]*=*) printf " '%s'" "$(printf %s "$word" | sed "s/'/'\\\\''/g")" ;;
      *) printf ' %s' "$word" ;;
    esac
  done
}
report() {
  if [ "$code" -eq 0 ]; then result=ok; else result="FAILED with exit code $code"; fi
  # A shell's code for a command that was ended by a signal.
  if [ "$code" -gt 128 ] && [ "$code" -le 192 ]; then result="$result (signal $((code - 128)))"; fi
  printf '%s on %s:%s (%s s)\n' "$result" "$(uname -n)" "$(quoted "$@")" "$took"
  tail -n 20 "$output" | tail -c 4000
}
report "$@" | "$(dirname -- "$me")/notify.sh" "$name" || cat "$output" >&2
exit "$code"
