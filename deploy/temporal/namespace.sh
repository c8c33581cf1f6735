#!/bin/sh
# Makes Temporal's namespace TEMPORAL_NAMESPACE if it is not there. Where Temporal is comes by the environment
# (TEMPORAL_ADDRESS, TEMPORAL_TLS_*). RETENTION is how long a reservation that is over can be looked at.
set -eu
tries=60
until temporal operator cluster health >/dev/null 2>&1; do
  tries=$((tries - 1))
  if [ "$tries" = 0 ]; then
    temporal operator cluster health
    exit 1
  fi
  sleep 1
done
if temporal operator namespace describe --namespace "$TEMPORAL_NAMESPACE" >/dev/null 2>&1; then
  exit 0
fi
temporal operator namespace create --namespace "$TEMPORAL_NAMESPACE" --retention "$RETENTION" --description 'Berth: reservations of computers'
