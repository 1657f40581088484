#!/usr/bin/env bash
# The MQTT peers: the broker and the clients of Eclipse Mosquitto.
set -euo pipefail
"$(dirname "$0")/ensure.sh" mosquitto mosquitto-clients
