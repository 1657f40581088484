package main

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/edgehost/edgehost/sources/mqtt"
)

// NotInForce lists the keys of the file that were accepted and checked but have
// no effect, each with the reason, for one line of the log.
func (c *config) NotInForce() []string {
	b := c.Backpressure
	var out []string
	for _, key := range []struct {
		path, why string
		applies   bool
	}{
		{"backpressure.enabled", "false has no effect: records always go through the spool", !b.Enabled},
		{"backpressure.disk_spool.enabled", "false has no effect: records are always on disk before they are acknowledged", !b.DiskSpool.Enabled},
		{"backpressure.disk_spool.encryption", "false has no effect: the spool is always encrypted", !b.DiskSpool.Encryption},
		{"backpressure.memory_queue.drop_policy", "no effect: what is in memory is never dropped, the device waits", b.MemoryQueue.DropPolicy != dropReject},
		{"backpressure.disk_spool.drop_policy", "no effect yet: nothing is dropped, the devices wait", b.DiskSpool.DropPolicy != dropReject},
		{"security.certificates.auto_rotation", "false has no effect: certificates that edgehost made itself are renewed, all others never", !c.Security.Certificates.AutoRotation},
		{"security.network.required_outbound", "no effect: nothing is enforced", true},
		{"monitoring.tracing", "no effect: traces are not exported", c.Monitoring.Tracing.Enabled},
		{"performance.workers.writer_threads", "no effect: each destination has one stream, which keeps order", true},
		{"performance.memory.gc_strategy", "accepted, no effect: it is a setting of another runtime", true},
	} {
		if _, written := c.doc.places[key.path]; written && key.applies {
			out = append(out, key.path+" ("+key.why+")")
		}
	}
	return out
}

// note adds to list what deserves a look at a key of the file.
func (c *config) note(list *problems, path, format string, args ...any) {
	at := c.doc.place(path)
	*list = append(*list, problem{c.doc.file, at.line, at.col, path, fmt.Sprintf(format, args...)})
}

// warnings lists what works but is probably not meant.
func (c *config) warnings() problems {
	var out problems
	for i := range c.Sources {
		s, at := &c.Sources[i], fmt.Sprintf("sources[%d]", i)
		if s.MQTT == nil {
			continue
		}
		for _, w := range s.MQTT.Warnings(s.Endpoint) {
			path := join(at+".mqtt", w.Path)
			if w.Path == "endpoint" {
				path = at + ".endpoint"
			}
			c.note(&out, path, "%s", w.Msg)
		}
		if s.StaleAfterSeconds > 0 && len(s.StaleOverrides) == 0 && s.sparkplug() {
			c.note(&out, at+".stale_after_seconds", "a Sparkplug metric that does not change is silent by design, and its edge node tells when it dies: give its addresses (group/node/*) after_seconds: 0 in stale_overrides")
		}
	}
	return out
}

// sparkplug reports whether a topic of the source is read as Sparkplug B.
func (c *sourceConfig) sparkplug() bool {
	const format = "sparkplug_b"
	return slices.ContainsFunc(c.MQTT.Topics, func(t mqtt.TopicConfig) bool {
		return t.Payload.Format == format || t.Payload.Format == "" && c.MQTT.Payload.Format == format
	})
}

// secretKeys are the keys whose values belong into variables or files.
var secretKeys = []string{"password", "client_secret"}

// strict lists what keeps a site from being safe: every edge in the clear, every
// peer that is believed unseen, every secret in the file.
func (c *config) strict() problems {
	var out problems
	for i := range c.Sources {
		s, at := &c.Sources[i], fmt.Sprintf("sources[%d]", i)
		scheme, _, _ := strings.Cut(s.Endpoint, "://")
		switch {
		case s.OPCUA != nil:
			o := s.OPCUA
			if o.SecurityPolicy == "None" || o.SecurityMode == "None" {
				c.note(&out, at+".opcua", "the connection is in the clear; set security_mode: SignAndEncrypt and a security_policy")
			}
			if o.SecurityMode == "Sign" {
				c.note(&out, at+".opcua.security_mode", "Sign protects values from change, not from being read; set SignAndEncrypt")
			}
			if s.Isolation == isolationNone {
				c.note(&out, at+".isolation", "a hostile server can end edgehost as a whole; remove the key, or set process")
			}
			if o.Trust.Mode == "insecure" {
				c.note(&out, at+".opcua.trust.mode", "insecure believes any server")
			}
		case s.MQTT != nil:
			if !s.MQTT.TLS.Enabled && scheme != "mqtts" && scheme != "ssl" && scheme != "wss" {
				c.note(&out, at+".endpoint", "the connection is in the clear; set mqtt.tls.enabled: true")
			}
			if s.MQTT.TLS.InsecureSkipVerify {
				c.note(&out, at+".mqtt.tls.insecure_skip_verify", "believes any broker")
			}
		case s.Modbus != nil:
			if scheme != "modbus+tls" && !strings.HasPrefix(scheme, "modbus+rtu:") && scheme != "modbus+rtu" && scheme != "modbusrtu" {
				c.note(&out, at+".endpoint", "the connection is in the clear; use modbus+tls://, or keep the device on a serial line")
			}
		}
	}
	if t := c.Monitoring.Tracing; t.Enabled && plainAndFar(t.OTLP.Endpoint) {
		c.note(&out, "monitoring.tracing.otlp.endpoint", "traces leave this machine in the clear; use https://")
	}
	if k := c.Spool; k.KeyEnv == "" && k.KeyFile == "" && k.PassphraseEnv == "" {
		c.note(&out, "spool", "no key is configured, so one is made beside the data and protects nothing from a thief of the disk; set spool.key_env, key_file or passphrase_env")
	}
	for path, at := range c.doc.places {
		key := path[strings.LastIndexByte(path, '.')+1:]
		if slices.Contains(secretKeys, key) && !at.expanded {
			c.note(&out, path, "a secret stands in the file; write ${VARIABLE}")
		}
	}
	slices.SortStableFunc(out, func(a, b problem) int { return a.line - b.line })
	return out
}

// plainAndFar reports whether an address is http:// to another machine.
func plainAndFar(addr string) bool {
	u, err := url.Parse(addr)
	if err != nil || u.Scheme != "http" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback())
}
