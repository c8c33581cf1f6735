#!/bin/bash
# Makes the database cluster at the first start, then becomes the server.
set -euo pipefail
if [[ $(id -u) == 0 ]]; then
  mkdir -p "$PGDATA"
  chown postgres:postgres "$PGDATA"
  chmod 700 "$PGDATA"
  if [[ -n ${POSTGRES_PASSWORD_FILE:-} ]]; then
    POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
    export POSTGRES_PASSWORD
    unset POSTGRES_PASSWORD_FILE
  fi
  exec setpriv --reuid postgres --regid postgres --init-groups "$0" "$@"
fi
if [[ ${1:-} == postgres && ! -s $PGDATA/PG_VERSION ]]; then
  user=${POSTGRES_USER:-postgres}
  # shellcheck disable=SC2086 # several arguments, as the official image takes them
  initdb --username="$user" --pwfile=<(printf '%s\n' "${POSTGRES_PASSWORD:?set POSTGRES_PASSWORD_FILE}") ${POSTGRES_INITDB_ARGS:-}
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  pg_ctl -w -o "-c listen_addresses=''" start
  if [[ ${POSTGRES_DB:-$user} != postgres ]]; then createdb -U "$user" "${POSTGRES_DB:-$user}"; fi
  for file in /docker-entrypoint-initdb.d/*; do
    case $file in
    *.sql) psql -v ON_ERROR_STOP=1 -U "$user" -d "${POSTGRES_DB:-$user}" -f "$file" ;;
    *.sh) bash "$file" ;;
    esac
  done
  pg_ctl -w -m fast stop
fi
unset POSTGRES_PASSWORD
if [[ ${1:-} == postgres ]]; then set -- "$@" -c "listen_addresses=*"; fi
exec "$@"
