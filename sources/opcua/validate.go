package opcua

import (
	"fmt"
	"slices"
	"strings"

	"github.com/edgehost/edgehost/sources"
)

// checker collects the mistakes of one configuration.
type checker struct{ errs []sources.FieldError }

func (k *checker) add(path, format string, args ...any) {
	k.errs = append(k.errs, sources.FieldError{Path: path, Msg: fmt.Sprintf(format, args...)})
}

func (k *checker) oneOf(path, v string, allowed ...string) {
	if !slices.Contains(allowed, v) {
		k.add(path, "%q is not known; use one of %s", v, strings.Join(allowed, ", "))
	}
}

func (k *checker) between(path string, v, low, high int) {
	if v < low || v > high {
		k.add(path, "%d is out of range; use %d to %d", v, low, high)
	}
}

// ValidateEndpoint checks the endpoint URL of a source without connecting.
func ValidateEndpoint(endpoint string) error {
	_, err := parseEndpoint(endpoint)
	return err
}

// Validate returns everything that is wrong with the block, with paths relative
// to it ("nodes[0].node_id"). It reads no files and does not connect. Absent
// keys count as their defaults.
func (c Config) Validate() []sources.FieldError {
	c = c.withDefaults()
	k := &checker{}
	c.validateSecurity(k)
	c.validateTiming(k)
	validateItem(k, "defaults", c.Defaults)
	if len(c.Nodes) == 0 && len(c.Events) == 0 {
		k.add("nodes", "nothing to read; name at least one node or event")
	}
	first := map[string]int{}
	for i, n := range c.Nodes {
		validateNode(k, fmt.Sprintf("nodes[%d]", i), n, c.Defaults)
		if n.Recursive {
			continue // it yields to a node that is named itself
		}
		if at, twice := first[nodeName(n)]; twice && nodeName(n) != "" {
			k.add(fmt.Sprintf("nodes[%d]", i), "%s is nodes[%d] already; a node is read once: remove one of them", nodeName(n), at)
		} else {
			first[nodeName(n)] = i
		}
	}
	for i, e := range c.Events {
		validateEvent(k, fmt.Sprintf("events[%d]", i), e)
	}
	return k.errs
}

func (c Config) validateSecurity(k *checker) {
	policy, mode := c.SecurityPolicy, c.SecurityMode
	switch policy {
	case "Basic256", "Basic128Rsa15":
		if policy == "Basic128Rsa15" {
			k.add("security_policy", "Basic128Rsa15 is broken and not supported; use Basic256Sha256 or better")
		} else if !c.AllowDeprecatedPolicies {
			k.add("security_policy", "Basic256 is deprecated; use Basic256Sha256 or set allow_deprecated_policies: true")
		}
	default:
		k.oneOf("security_policy", policy, "auto", "None", "Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss")
	}
	k.oneOf("security_mode", mode, "auto", "None", "Sign", "SignAndEncrypt")
	if policy == "None" && (mode == "Sign" || mode == "SignAndEncrypt") {
		k.add("security_mode", "%s needs a security_policy other than None", mode)
	}
	if mode == "None" && policy != "None" {
		k.add("security_mode", "None needs security_policy: None as well, so that nothing is downgraded by accident")
	}
	if (c.CertificatePath == "") != (c.PrivateKeyPath == "") {
		k.add("private_key_path", "certificate_path and private_key_path belong together; give both or neither")
	}
	if (c.UserCertificatePath == "") != (c.UserPrivateKeyPath == "") {
		k.add("user_private_key_path", "user_certificate_path and user_private_key_path belong together")
	}
	if c.Username != "" && c.UserCertificatePath != "" {
		k.add("username", "choose one: username and password, or user_certificate_path")
	}
	if c.Username == "" && c.Password != "" {
		k.add("password", "a password without username is never sent; set username")
	}
	k.between("certificate_renew_days", c.CertificateRenewDays, 1, 300)
	k.oneOf("trust.mode", c.Trust.Mode, "list", "ca", "pin", "tofu", "insecure")
	if c.Trust.Mode == "pin" && c.Trust.ServerCertificatePath == "" {
		k.add("trust.server_certificate_path", "mode pin needs the server's certificate here")
	}
}

func (c Config) validateTiming(k *checker) {
	k.between("session_timeout_seconds", c.SessionTimeoutSeconds, 5, 86400)
	k.between("request_timeout_seconds", c.RequestTimeoutSeconds, 1, 600)
	k.between("keepalive_count", c.KeepaliveCount, 1, 10000)
	k.between("lifetime_seconds", c.LifetimeSeconds, 10, 7*86400)
	k.between("publishing_interval_ms", c.PublishingIntervalMS, 10, 3600_000)
	k.between("publish_requests", c.PublishRequests, 1, 20)
	k.between("max_notifications_per_publish", c.MaxNotificationsPerPublish, 1, 100_000)
	k.between("history_values_per_second", c.HistoryValuesPerSecond, 1, 1_000_000)
	k.oneOf("mode", c.Mode, "subscribe", "poll")
	k.oneOf("ack", c.Ack, "durable", "received")
	k.oneOf("timestamp", c.Timestamp, "source", "server", "ingest")
	k.oneOf("enums", c.Enums, "name", "number")
	k.between("limits.max_items_per_call", c.Limits.MaxItemsPerCall, 0, 100_000)
	k.between("limits.max_nodes_per_read", c.Limits.MaxNodesPerRead, 0, 100_000)
	k.between("limits.max_nodes_per_browse", c.Limits.MaxNodesPerBrowse, 0, 100_000)
	k.between("limits.max_items_per_subscription", c.Limits.MaxItemsPerSubscription, 0, 1_000_000)
	if life := c.LifetimeSeconds * 1000; life < 3*c.KeepaliveCount*c.PublishingIntervalMS {
		k.add("lifetime_seconds", "must be at least 3 × keepalive_count × publishing_interval_ms (%d s)",
			(3*c.KeepaliveCount*c.PublishingIntervalMS+999)/1000)
	}
}

func validateItem(k *checker, path string, i ItemConfig) {
	k.oneOf(path+".mode", *i.Mode, "subscribe", "poll")
	k.between(path+".sampling_interval_ms", *i.SamplingIntervalMS, -1, 86400_000)
	k.between(path+".queue_size", *i.QueueSize, 1, 1_000_000)
	k.oneOf(path+".trigger", *i.Trigger, "status", "status_value", "status_value_timestamp")
	k.between(path+".heartbeat_seconds", *i.HeartbeatSeconds, 0, 86400)
	k.oneOf(path+".deadband.type", i.Deadband.Type, "none", "absolute", "percent")
	switch {
	case !(i.Deadband.Value >= 0):
		k.add(path+".deadband.value", "must not be negative")
	case i.Deadband.Type == "percent" && i.Deadband.Value > 100:
		k.add(path+".deadband.value", "a percentage is at most 100")
	}
	if *i.Mode == "poll" && *i.SamplingIntervalMS < 10 {
		k.add(path+".sampling_interval_ms", "polling needs an interval of at least 10 ms")
	}
}

func validateNode(k *checker, path string, n NodeConfig, defaults ItemConfig) {
	switch {
	case (n.NodeID == "") == (n.BrowsePath == ""):
		k.add(path, "give node_id or browse_path, one of them")
	case n.NodeID != "":
		if _, err := parseNodeRef(n.NodeID); err != nil {
			k.add(path+".node_id", "%v", err)
		}
	default:
		if _, err := parseBrowsePath(n.BrowsePath); err != nil {
			k.add(path+".browse_path", "%v", err)
		}
	}
	validateItem(k, path, n.ItemConfig.over(defaults))
	k.errs = append(k.errs, sources.Prefix(path+".tags", sources.ValidateTags(n.Tags))...)
	if !n.Recursive {
		for key, set := range map[string]bool{"max_depth": n.MaxDepth != 0, "max_nodes": n.MaxNodes != 0, "include": n.Include != nil,
			"exclude": n.Exclude != nil, "types": n.Types != nil, "rebrowse_seconds": n.RebrowseSeconds != 0} {
			if set {
				k.add(path+"."+key, "works with recursive: true only")
			}
		}
	}
	k.between(path+".max_depth", n.MaxDepth, 0, 100)
	k.between(path+".max_nodes", n.MaxNodes, 0, 1_000_000)
	k.between(path+".rebrowse_seconds", n.RebrowseSeconds, 0, 7*86400)
	for i, t := range n.Types {
		if _, ok := builtinByName[t]; !ok {
			k.add(fmt.Sprintf("%s.types[%d]", path, i), "%q is not a built-in type; use Boolean, Int32, Double, String, …", t)
		}
	}
	if n.Recursive && n.Name != "" {
		k.add(path+".name", "a name fits one node; with recursive the browse path names each of them")
	}
}

func validateEvent(k *checker, path string, e EventConfig) {
	if _, err := parseNodeRef(e.NodeID); err != nil {
		k.add(path+".node_id", "%v", err)
	}
	if e.EventType != "" {
		if _, err := parseNodeRef(e.EventType); err != nil {
			k.add(path+".event_type", "%v", err)
		}
	}
	k.errs = append(k.errs, sources.Prefix(path+".tags", sources.ValidateTags(e.Tags))...)
	k.between(path+".min_severity", e.MinSeverity, 0, 1000)
	k.between(path+".queue_size", e.QueueSize, 0, 1_000_000)
	for i, f := range e.Fields {
		if strings.Trim(f, "/") == "" {
			k.add(fmt.Sprintf("%s.fields[%d]", path, i), "empty field name")
		}
	}
	for i, w := range e.Where {
		at := fmt.Sprintf("%s.where[%d]", path, i)
		if w.Field == "" {
			k.add(at+".field", "name an event field")
		}
		k.oneOf(at+".op", w.Op, "eq", "gt", "gte", "lt", "lte", "like")
		if _, err := literal(w.Value); err != nil {
			k.add(at+".value", "%v", err)
		}
	}
}
