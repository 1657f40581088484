#!/usr/bin/env bash
# The peers of the end-to-end suite are those of the MQTT suite.
exec "$(dirname "$0")/install-mqtt.sh"
