#!/bin/sh
# Makes Temporal's two databases and brings their tables to the version of this image. It may run again: what is there
# stays. Where the database is and how to get in comes by the environment (SQL_HOST and so on), the password by a file.
set -eu
SQL_PASSWORD=$(cat /run/secrets/postgres_password)
export SQL_PASSWORD
if [ -n "${SQL_TLS_KEY_FILE:-}" ]; then # it is taken only if it is its owner's alone
  (
    umask 077
    cat "$SQL_TLS_KEY_FILE" >/tmp/key.pem
  )
  export SQL_TLS_KEY_FILE=/tmp/key.pem
fi
for database in temporal temporal_visibility; do
  folder=${database#temporal_}
  export SQL_DATABASE=$database
  temporal-sql-tool create-database
  temporal-sql-tool setup-schema -v 0.0
  temporal-sql-tool update-schema -d "/etc/temporal/schema/postgresql/v12/$folder/versioned"
done
