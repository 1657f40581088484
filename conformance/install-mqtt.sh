#!/bin/sh
# Installs the MQTT peers of the conformance tests on Debian: the broker and the
# clients of Eclipse Mosquitto. The tests start brokers of their own, so the
# system's service is not started.
set -eu

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# policy-rc.d keeps the package from starting the service.
if [ ! -e /usr/sbin/policy-rc.d ]; then
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod +x /usr/sbin/policy-rc.d
	trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get install -y -qq --no-install-recommends mosquitto mosquitto-clients
command -v mosquitto mosquitto_pub mosquitto_sub mosquitto_passwd
