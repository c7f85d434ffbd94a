#!/bin/sh
# Serves until it is told to stop: a server that was killed is started again and finds its workers at work.
# The container's main program; on a machine of your own, a service manager does the same.
stopping=
trap 'stopping=yes' TERM INT HUP
until python -m app "$@" || [ -n "$stopping" ]; do
    echo "tools/serve.sh: the server is gone; starting it again" >&2
    sleep 1
    [ -n "$stopping" ] && break
done
