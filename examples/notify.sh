#!/bin/sh
# Sends a message from a shell script or a cron job. Needs only a POSIX shell and curl.
#
#   notify.sh NAME TEXT...       sends this text to the inbox NAME
#   COMMAND | notify.sh NAME     sends the output of a command
#
# The service refuses a text over 64 KiB. To send the end of a long output, pipe it through `tail -c 60000`.
#
# CHAT_URL         the address of the service, by default http://127.0.0.1:8080
# CHAT_TOKEN       a token, if the service needs one; over a network, use https://
# CHAT_TOKEN_FILE  a file with nothing but a token, used if CHAT_TOKEN is not set
# NOTIFY_TIMEOUT   how long the message can be read, in seconds, by default a day (86400)
# NOTIFY_DELAY     how long until the message can be read, in seconds, by default 0
#
# If there is no answer or the service is busy, it tries 6 times. It takes at most about 2 minutes: 15 s for each try, and
# 31 s for the pauses between them. It says so at the first retry.
#
# Exits with 0 once the message is stored, with 2 if it was called wrongly, and otherwise with 1. Standard error has the
# reason.
set -eu
me=${0##*/}
[ $# -gt 0 ] || { echo "usage: $me NAME [TEXT]..., or $me --help" >&2; exit 2; }
[ "$1" != --help ] || { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0; }
name=$1
shift

wrong() {
  echo "$me: $1; nothing was sent" >&2
  exit 2
}
[ -n "$name" ] || wrong "the name of the inbox is empty"
case ${NOTIFY_TIMEOUT:-1} in *[!0-9]*) wrong "NOTIFY_TIMEOUT must be a whole number of seconds" ;; esac
case ${NOTIFY_DELAY:-0} in . | *[!0-9.]* | *.*.*) wrong "NOTIFY_DELAY must be a number of seconds" ;; esac

token=${CHAT_TOKEN:-}
origin=CHAT_TOKEN
if [ -z "$token" ] && [ -n "${CHAT_TOKEN_FILE:-}" ]; then
  origin=$CHAT_TOKEN_FILE
  token=$(cat -- "$origin" 2>/dev/null) || wrong "cannot read the token in $origin"
  token=${token%"$(printf '\r')"}
  [ -n "$token" ] || wrong "there is no token in $origin"
fi
# The token becomes a part of curl's configuration, which other characters could change.
case $(printf %s "$token" | LC_ALL=C tr -c 'A-Za-z0-9._~+/=-' '!') in
  *!*) wrong "$origin must hold a token and nothing else" ;;
esac

if [ $# -gt 0 ]; then
  text=$*
else
  text=$(cat)
  [ -n "$text" ] || { echo "$me: standard input is empty; nothing was sent" >&2; exit 1; }
fi

hex() { od -An -v -tx1 | tr -d ' \n' | sed 's/../ &/g'; }
# What is left of a text in UTF-8 without its characters, in hexadecimal: nothing, if it is one.
not_utf_8() {
  hex | sed -E 's/ [0-7]././g; s/ (c[2-9a-f]|d.) [89ab]././g
    s/ (e0 [ab]|ed [89]|e[1-9a-cef] [89ab]). [89ab]././g
    s/ (f0 [9ab]|f4 8|f[1-3] [89ab]). [89ab]. [89ab]././g; s/\.//g'
}
# A message is UTF-8. The text may be something else, or be cut within a character.
[ -z "$(printf %s "$text" | not_utf_8)" ] || text=$(printf %s "$text" | LC_ALL=C tr '\200-\377' '?')

# Every byte as %XX, so that any name is one segment of a path.
inbox=$(printf %s "$name" | hex | tr ' ' %)
# The same key in each try: the message is stored once, even if an answer got lost.
key=$(od -An -v -N16 -tx1 /dev/urandom | tr -d ' \n')
url=${CHAT_URL:-http://127.0.0.1:8080}
url=${url%/}
config=
[ -z "$token" ] || config="header = \"Authorization: Bearer $token\""

# All users can see the arguments of a program, so the text and the token go through pipes.
post() {
  printf %s "$text" | curl --silent --show-error --max-time 15 --write-out '\n%{http_code}' \
    --header "Idempotency-Key: $key" --header "X-Timeout: ${NOTIFY_TIMEOUT:-86400}" \
    ${NOTIFY_DELAY:+--header "X-Delay: $NOTIFY_DELAY"} \
    --header 'Content-Type: text/plain; charset=utf-8' --data-binary @- --config /dev/fd/3 \
    "$url/chat/$inbox" 3<<END
$config
END
}

# Says why the last try failed: the field `detail` of the answer, or curl's error.
reason() {
  case $answer in
    *'"detail":"'*)
      printf %s "${answer#*\"detail\":\"}" | sed -E 's/^(([^"\\]|\\.)*)".*/\1/; s/\\(["\\])/\1/g
        s/^(X-)?[Tt]imeout /NOTIFY_TIMEOUT /; s/^(X-)?[Dd]elay /NOTIFY_DELAY /; q' | tr -d '\n'
      printf ' (status %s)' "$status"
      [ "$status" != 401 ] || printf '; set CHAT_TOKEN or CHAT_TOKEN_FILE to a valid token'
      ;;
    *) if [ "$status" = 000 ]; then printf %s "$answer"; else printf 'status %s from %s' "$status" "$url"; fi ;;
  esac
}

for seconds in 1 2 4 8 16 0; do
  answer=$(post 2>&1) || true
  # The last line is the status; 000 if there was no answer.
  status=${answer##*
}
  answer=${answer%
*}
  case $status in
    201) exit 0 ;;
    # No answer, busy, or unavailable: wait and try again.
    000 | 408 | 409 | 429 | 5??)
      [ "$seconds" != 1 ] || printf '%s: %s; trying again, for at most 2 minutes\n' "$me" "$(reason)" >&2
      sleep "$seconds"
      ;;
    *) break ;;
  esac
done
printf '%s: the message to %s was not sent: %s\n' "$me" "$name" "$(reason)" >&2
exit 1
