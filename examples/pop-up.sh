#!/bin/sh
# Shows each message to an inbox as a notification on the desktop, until Ctrl-C.
#
#   pop-up.sh NAME
#
# Needs the command `chat` and notify-send (Debian: libnotify-bin). On macOS, use terminal-notifier or osascript instead.
#
# `chat watch` keeps a message leased while its command runs. If the command fails, because nobody is logged in
# for example, the message becomes unread again and is shown later. It reconnects when the service restarts.
set -eu
[ $# -eq 1 ] || { echo "usage: ${0##*/} NAME" >&2; exit 2; }
# The name and the text come from others, so they are data for the command and never a part of it.
INBOX=$1 exec chat watch "$1" --exec 'notify-send -- "$INBOX" "$(cat)"'
