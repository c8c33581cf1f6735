#!/bin/sh
# Listens on this container's address unless BIND_ON_IP names another one.
set -eu
own=$(hostname -i | cut -d ' ' -f 1)
export BIND_ON_IP="${BIND_ON_IP:-$own}"
if [ "$BIND_ON_IP" = 0.0.0.0 ]; then
  export TEMPORAL_BROADCAST_ADDRESS="${TEMPORAL_BROADCAST_ADDRESS:-$own}"
fi
exec temporal-server start
