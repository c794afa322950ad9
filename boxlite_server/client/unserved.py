"""What upstream's command has and this one has not: why, and what does the job here."""

from __future__ import annotations

_NO_LOGIN_PAGE = "servers are logged in to with an API key; 'boxlite auth login' asks for it"
_NO_RATES = "no server limits how fast the network of a box is; leave the flag out"

FLAGS = {
    "--registry": "images come from the registry that IMAGE names, as in ghcr.io/owner/name; leave the flag out",
    "--config": "this command has no configuration file; its settings are flags, environment variables and the "
    "profiles of 'boxlite auth login'",
    "--home": "this command keeps no boxes on this machine; BOXLITE_HOME names the directory of its profiles",
    "--net-tx-kbps": _NO_RATES,
    "--net-rx-kbps": _NO_RATES,
    "--mount": "mounts are given by -v SOURCE:PATH, and read-only ones by -v SOURCE:PATH:ro",
    "--listen": "this command forwards no ports of this machine; publish the port of the box with "
    "'boxlite create -p PORT IMAGE'",
    "--method": f"{_NO_LOGIN_PAGE}, or takes it by --api-key-stdin",
    "--no-browser": _NO_LOGIN_PAGE,
    "--issuer": _NO_LOGIN_PAGE,
    "--client-id": _NO_LOGIN_PAGE,
    "--audience": _NO_LOGIN_PAGE,
    "--callback-port": _NO_LOGIN_PAGE,
}

COMMANDS = {  # by the words behind `boxlite`
    "agent": "no server runs agents of its own; start one as a command, with 'boxlite exec BOX -- COMMAND'",
    "gc": "there is nothing to collect on this machine; 'boxlite rm' removes boxes, 'boxlite rmi' images, and "
    "'boxlite volume rm' volumes",
    "network stdio": "no server opens tunnels; publish the port of the box with 'boxlite create -p PORT IMAGE'",
    "serve": "this command is a client; 'boxlite-server dev' runs a server on this machine",
    "ssh": "no server sets up SSH in boxes; 'boxlite exec -it BOX -- sh' opens a shell",
    "top": "this command lists no processes; 'boxlite exec BOX -- ps' shows those of a box, and 'boxlite stats BOX' "
    "what they use",
    "volume attach": "volumes are mounted when a box is created, with 'boxlite create -v VOLUME:PATH IMAGE'",
    "volume detach": "volumes stay mounted for as long as their box is there; 'boxlite rm BOX' keeps their data",
}
