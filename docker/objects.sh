#!/bin/sh
# An S3 server over a folder, with the key pair that its clients read from the same secret, and the bucket `scale`.
set -eu

file=$AWS_SHARED_CREDENTIALS_FILE
[ -s "$file" ] || { echo "$file is missing or empty: run make secrets" >&2; exit 1; }
ROOT_ACCESS_KEY_ID=$(sed -n 's/^aws_access_key_id *= *//p' "$file")
ROOT_SECRET_ACCESS_KEY=$(sed -n 's/^aws_secret_access_key *= *//p' "$file")
export ROOT_ACCESS_KEY_ID ROOT_SECRET_ACCESS_KEY
mkdir -p "$1/scale"  # to this server a bucket is a folder
exec versitygw --port=:9000 --health=/health posix "$1"
