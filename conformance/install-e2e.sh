#!/usr/bin/env bash
# The peers of the end-to-end suite: mosquitto and its clients.
set -euo pipefail
"$(dirname "$0")/ensure.sh" mosquitto mosquitto-clients
