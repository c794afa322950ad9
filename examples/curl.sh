#!/bin/sh
# A box through its life, with curl (7.82 or newer) and websocat.
set -eu

url=${BOXLITE_REST_URL:-http://127.0.0.1:8200}/v1
key="Authorization: Bearer ${BOXLITE_API_KEY:-}"

field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" && echo; }

box=$(curl -fsS -H "$key" "$url/boxes" \
  --json '{"name": "greeter-in-curl", "image": "alpine:latest", "start": true}' | field box_id)
trap 'curl -fsS -H "$key" -X DELETE "$url/boxes/$box?force=true"' EXIT

execution=$(curl -fsS -H "$key" "$url/boxes/$box/exec" --json '{"command": "sh", "args": ["-c",
  "echo What is your name?; read -r name; echo Hello, $name. | tee /tmp/greeting"]}' | field execution_id)

# What is written to the WebSocket is the command's input. The first byte of a frame tells stdout (1) from stderr (2).
echo Ada | websocat --binary --no-close --header="$key" "ws${url#http}/boxes/$box/executions/$execution/attach" |
  tr -d '\001'

printf '\nfile: '
curl -fsS -H "$key" "$url/boxes/$box/files/content?path=/tmp/greeting"
printf 'error: '
curl -sS -H "$key" "$url/boxes" --json '{"name": "greeter-in-curl"}' | field code
