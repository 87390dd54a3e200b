#!/bin/sh
# Sends a message from a shell script or a cron job. Needs only a POSIX shell and curl.
#
#   notify.sh NAME TEXT...       sends this text to the inbox NAME
#   COMMAND | notify.sh NAME     sends the output of a command, up to 64 KiB
#
# CHAT_URL         the address of the service, by default http://127.0.0.1:8080
# CHAT_TOKEN_FILE  a file with a token, if the service needs one; over a network, use https://
# NOTIFY_TIMEOUT   how long the message can be read, in seconds, by default a day
#
# Exits with 0 once the message is stored, and otherwise with 1 and the reason on standard error.
set -eu
[ $# -gt 0 ] || { echo "usage: ${0##*/} NAME [TEXT]..." >&2; exit 2; }
name=$1
shift
if [ $# -gt 0 ]; then text=$*; else text=$(cat); fi

# Every byte as %XX, so that any name is one segment of a path.
inbox=$(printf %s "$name" | od -An -v -tx1 | tr -d ' \n' | sed 's/../%&/g')
# The same key in each try: the message is stored once, even if an answer got lost.
key=$(od -An -v -N16 -tx1 /dev/urandom | tr -d ' \n')
config=
[ -z "${CHAT_TOKEN_FILE:-}" ] || config="header = \"Authorization: Bearer $(cat "$CHAT_TOKEN_FILE")\""

# All users can see the arguments of a program, so the text and the token go through pipes.
post() {
  printf %s "$text" | curl --silent --show-error --max-time 15 --write-out '\n%{http_code}' \
    --header "Idempotency-Key: $key" --header "X-Timeout: ${NOTIFY_TIMEOUT:-86400}" \
    --header 'Content-Type: text/plain; charset=utf-8' --data-binary @- --config /dev/fd/3 \
    "${CHAT_URL:-http://127.0.0.1:8080}/chat/$inbox" 3<<END
$config
END
}

for seconds in 1 2 4 8 16 0; do
  answer=$(post 2>&1) || true
  # The last line is the status; 000 if there was no answer.
  case ${answer##*
} in
    201) exit 0 ;;
    # No answer, busy, or unavailable: wait and try again.
    000 | 408 | 409 | 429 | 5??) sleep "$seconds" ;;
    *) break ;;
  esac
done
printf '%s: the message to %s was not sent: %s\n' "${0##*/}" "$name" "$answer" >&2
exit 1
