package main

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/edgehost/edgehost/host"
	"github.com/edgehost/edgehost/modules"
	"github.com/edgehost/edgehost/sinks/zerobus"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/modbus"
	"github.com/edgehost/edgehost/sources/opcua"
)

// check holds every key to its limits. It reads no other file and asks nobody.
func (c *config) check() {
	if c.StateDir == "" {
		c.doc.failAt("state_dir", "is empty; name the directory that holds what must survive")
	}
	c.checkListen("health.listen", c.Health.Listen)
	c.checkListen("metrics.listen", c.Metrics.Listen)
	if c.Health.Listen == c.Metrics.Listen && c.Health.Listen != off && !strings.HasSuffix(c.Health.Listen, ":0") {
		c.doc.failAt("metrics.listen", "is the address of health.listen; give each its own, or set one of them to off")
	}
	c.checkSinks()
	c.checkTables()
	names := c.checkSources()
	c.checkPipelines(names)
	c.checkNumbers()
	c.checkLogging()
	if e := c.Monitoring.Tracing.OTLP.Endpoint; e != "" {
		if u, err := url.Parse(e); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			c.doc.failAt("monitoring.tracing.otlp.endpoint", "is not an address; write it like http://localhost:4318")
		}
	}
	c.checkKeys()
}

func (c *config) checkListen(path, addr string) {
	if addr == off {
		return
	}
	host, port, err := net.SplitHostPort(addr)
	n, perr := strconv.Atoi(port)
	if err != nil || perr != nil || n < 0 || n > 65535 || strings.ContainsAny(host, "/ ") {
		c.doc.failAt(path, "%q is not host:port; write it like 127.0.0.1:8080, :8080 for every interface, or off", addr)
	}
}

// between checks a number.
func between[N int | int64 | float64](c *config, path string, v, low, high N) {
	if !(v >= low && v <= high) { // NaN too
		c.doc.failAt(path, "%v is not between %v and %v", v, low, high)
	}
}

func (c *config) oneOf(path, v string, known ...string) {
	if !slices.Contains(known, v) {
		c.doc.failAt(path, "%q is none of %s", v, strings.Join(known, ", "))
	}
}

func (c *config) checkNumbers() {
	b := c.Backpressure
	between(c, "backpressure.memory_queue.max_size", b.MemoryQueue.MaxSize, 1, 10_000_000)
	c.oneOf("backpressure.memory_queue.drop_policy", b.MemoryQueue.DropPolicy, dropOldest, dropNewest, dropReject)
	between(c, "backpressure.disk_spool.max_size_mb", b.DiskSpool.MaxSizeMB, 16, 10_000_000)
	c.oneOf("backpressure.disk_spool.drop_policy", b.DiskSpool.DropPolicy, dropOldest, dropNewest, dropReject)
	between(c, "backpressure.disk_spool.retention_seconds", b.DiskSpool.RetentionSeconds, 0, 366*86400)
	between(c, "backpressure.dead_letter_queue.max_size_mb", b.DeadLetterQueue.MaxSizeMB, 1, 1_000_000)

	between(c, "processing.batch.max_size", c.Processing.Batch.MaxSize, 1, 100_000)
	between(c, "processing.batch.max_wait_seconds", c.Processing.Batch.MaxWaitSeconds, 0, 3600)
	between(c, "performance.workers.reader_threads", c.Performance.Workers.ReaderThreads, 0, 1024)
	between(c, "performance.workers.writer_threads", c.Performance.Workers.WriterThreads, 0, 1024)
	if m := c.Performance.Memory.MaxHeapMB; m != 0 {
		between(c, "performance.memory.max_heap_mb", m, 64, 1_048_576)
	}
	between(c, "security.certificates.rotation_days_before_expiry", c.Security.Certificates.RotationDaysBeforeExpiry, 1, 300)
	between(c, "resilience.circuit_breaker.failure_threshold", c.Resilience.CircuitBreaker.FailureThreshold, 1, 1_000_000)
	between(c, "resilience.circuit_breaker.timeout_seconds", c.Resilience.CircuitBreaker.TimeoutSeconds, 0.001, 86400)
	c.sourceErrors("resilience.reconnect", c.Resilience.Reconnect.Validate())
}

func (c *config) checkLogging() {
	l := c.Monitoring.Logging
	if _, err := logLevel(l.Level); err != nil {
		c.doc.failAt("monitoring.logging.level", "%v", err)
	}
	c.oneOf("monitoring.logging.format", l.Format, "json", "text")
	between(c, "monitoring.logging.max_size_mb", l.MaxSizeMB, 1, 100_000)
	between(c, "monitoring.logging.max_backups", l.MaxBackups, 0, 10_000)
	between(c, "monitoring.logging.max_age_days", l.MaxAgeDays, 0, 36500)
}

// checkKeys: one key for the spool, from one place.
func (c *config) checkKeys() {
	k, set := c.Spool, 0
	for _, v := range []string{k.KeyEnv, k.KeyFile, k.PassphraseEnv} {
		if v != "" {
			set++
		}
	}
	if set > 1 {
		c.doc.failAt("spool", "key_env, key_file and passphrase_env exclude each other; keep one")
	}
	for _, env := range []struct{ path, name string }{{"spool.key_env", k.KeyEnv}, {"spool.passphrase_env", k.PassphraseEnv}} {
		if env.name != "" && !variableName.MatchString(env.name) {
			c.doc.failAt(env.path, "is not the name of an environment variable; write the name, not ${…} and not the key itself")
		}
	}
}

func (c *config) checkSinks() {
	if c.Zerobus != nil && c.Sinks.File != nil {
		c.doc.failAt("sinks.file", "stands beside zerobus; a destination has one sink, so remove one of the two blocks")
	}
	if f := c.Sinks.File; f != nil {
		if f.Dir == "" {
			c.doc.failAt("sinks.file.dir", "is missing; name the directory that the rows are written to")
		}
		between(c, "sinks.file.max_size_mb", f.MaxSizeMB, 0, 100_000_000)
	}
	z := c.Zerobus
	if z == nil {
		return
	}
	// Parts of the target that are missing come from the source and its protocol.
	full := z.Config
	full.Auth = zerobus.Auth{ClientID: z.Auth.ClientID, ClientSecret: z.Auth.ClientSecret.Reveal()}
	if z.Auth.ClientSecretFile != "" {
		if z.Auth.ClientSecret != "" {
			c.doc.failAt("zerobus.auth.client_secret_file", "stands beside client_secret; keep one of them")
		}
		full.Auth.ClientSecret = "in the file"
	}
	full.Target = fill(full.Target, zerobus.Target{Catalog: "c", Schema: "s", Table: "t"})
	for _, e := range full.Validate() {
		c.doc.failAt(join("zerobus", e.Path), "%s", e.Msg)
	}
	r := z.Reconnect
	between(c, "zerobus.reconnect.initial_delay_seconds", r.InitialDelaySeconds, 0.001, 86400)
	between(c, "zerobus.reconnect.max_delay_seconds", r.MaxDelaySeconds, r.InitialDelaySeconds, 86400)
	between(c, "zerobus.reconnect.backoff_multiplier", r.BackoffMultiplier, 1, 100)
	between(c, "zerobus.reconnect.jitter", r.Jitter, 0, 0.99)
}

func (c *config) checkTables() {
	seen := map[string]bool{}
	for i, t := range c.Tables {
		at := fmt.Sprintf("tables[%d]", i)
		target, ok := parseTarget(t.Name)
		if !ok {
			c.doc.failAt(at+".name", "%q is not catalog.schema.table", t.Name)
			continue
		}
		if seen[strings.ToLower(t.Name)] {
			c.doc.failAt(at+".name", "%s is described twice", t.Name)
		}
		seen[strings.ToLower(t.Name)] = true
		if _, errs := zerobus.SchemaOf(target, at+".columns", t.Columns); len(errs) > 0 {
			for _, e := range errs {
				c.doc.failAt(e.Path, "%s", e.Msg)
			}
		}
	}
}

// parseTarget reads catalog.schema.table.
func parseTarget(name string) (zerobus.Target, bool) {
	p := strings.Split(name, ".")
	if len(p) != 3 {
		return zerobus.Target{}, false
	}
	t := zerobus.Target{Catalog: p[0], Schema: p[1], Table: p[2]}
	return t, len(t.Validate("")) == 0
}

var nameRule = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

const nameHelp = "use 1 to 64 letters, digits, . _ or -, and start with a letter or digit"

// checkSources returns the names of all sources.
func (c *config) checkSources() []string {
	var names []string
	for i := range c.Sources {
		s, at := &c.Sources[i], fmt.Sprintf("sources[%d]", i)
		switch {
		case s.Name == "":
			c.doc.failAt(at+".name", "is missing; %s", nameHelp)
		case !nameRule.MatchString(s.Name):
			c.doc.failAt(at+".name", "%q cannot be a name; %s", s.Name, nameHelp)
		case slices.Contains(names, s.Name):
			c.doc.failAt(at+".name", "%q is the name of sources[%d] too; each source has its own", s.Name, slices.Index(names, s.Name))
		}
		names = append(names, s.Name)
		c.sourceErrors(at+".tags", sources.ValidateTags(s.Tags))
		c.sourceErrors(at+".reconnect", c.reconnect(s).Validate())
		c.checkPartialTarget(at+".target", s.Target)
		c.checkShared(at, s)
		c.checkProtocol(at, s)
		c.checkIsolation(at, s)
	}
	return names
}

func (c *config) checkIsolation(at string, s *sourceConfig) {
	if s.Isolation == "" {
		return
	}
	c.oneOf(at+".isolation", s.Isolation, isolationProcess, isolationNone)
	if s.Isolation == isolationProcess && (s.MQTT != nil || s.Modbus != nil) {
		c.doc.failAt(at+".isolation", "only opcua sources can run in a process of their own; remove the key, or set it to none")
	}
}

// reconnect is the back-off of one source: its own keys over those of all.
func (c *config) reconnect(s *sourceConfig) sources.ReconnectConfig {
	r, base := s.Reconnect, c.Resilience.Reconnect
	if r.InitialDelaySeconds == 0 {
		r.InitialDelaySeconds = base.InitialDelaySeconds
	}
	if r.MaxDelaySeconds == 0 {
		r.MaxDelaySeconds = base.MaxDelaySeconds
	}
	if r.BackoffMultiplier == 0 {
		r.BackoffMultiplier = base.BackoffMultiplier
	}
	if r.Jitter == nil {
		r.Jitter = base.Jitter
	}
	return r
}

func (c *config) sourceErrors(at string, errs []sources.FieldError) {
	for _, e := range sources.Prefix(at, errs) {
		c.doc.failAt(e.Path, "%s", e.Msg)
	}
}

// protocols are the names that sources[].protocol can have.
var protocols = []string{"opcua", "mqtt", "modbus"}

func (c *config) checkProtocol(at string, s *sourceConfig) {
	if s.Protocol == "" {
		c.doc.failAt(at+".protocol", "is missing; use one of %s", strings.Join(protocols, ", "))
		return
	}
	if !slices.Contains(protocols, s.Protocol) {
		c.doc.failAt(at+".protocol", "%q is not a protocol that edgehost speaks; use one of %s%s", s.Protocol, strings.Join(protocols, ", "), meant(nearest(s.Protocol, protocols), nil))
		return
	}
	blocks := []struct {
		name    string
		present bool
	}{{"opcua", s.OPCUA != nil}, {"mqtt", s.MQTT != nil}, {"modbus", s.Modbus != nil}}
	for _, b := range blocks {
		if b.present && b.name != s.Protocol {
			c.doc.failAt(join(at, b.name), "is the block of another protocol; this source has protocol: %s", s.Protocol)
			return
		}
	}
	for _, b := range blocks {
		if !b.present && b.name == s.Protocol {
			c.doc.failAt(at, "the block %s: is missing; it says what to read", b.name)
			return
		}
	}
	switch s.Protocol {
	case "opcua":
		if err := opcua.ValidateEndpoint(s.Endpoint); err != nil {
			c.doc.failAt(at+".endpoint", "%v", err)
		}
		c.sourceErrors(at+".opcua", s.OPCUA.Validate())
	case "mqtt":
		if err := s.MQTT.ValidateEndpoint(s.Endpoint); err != nil {
			c.doc.failAt(at+".endpoint", "%v", err)
		}
		c.sourceErrors(at+".mqtt", s.MQTT.Validate())
	case "modbus":
		for _, e := range modbus.ValidateEndpoint(s.Endpoint, *s.Modbus) {
			where := at
			if e.Path != "endpoint" {
				where = at + ".modbus"
			}
			c.doc.failAt(join(where, e.Path), "%s", e.Msg)
		}
		c.sourceErrors(at+".modbus", s.Modbus.Validate())
	}
}

// checkPartialTarget checks the parts of a target that are there.
func (c *config) checkPartialTarget(at string, t zerobus.Target) {
	for _, e := range fill(t, zerobus.Target{Catalog: "c", Schema: "s", Table: "t"}).Validate(at) {
		c.doc.failAt(e.Path, "%s", e.Msg)
	}
}

// fill returns t with its missing parts taken from base.
func fill(t, base zerobus.Target) zerobus.Target {
	for _, p := range []struct{ part, from *string }{{&t.Catalog, &base.Catalog}, {&t.Schema, &base.Schema}, {&t.Table, &base.Table}} {
		if *p.part == "" {
			*p.part = *p.from
		}
	}
	return t
}

func (c *config) checkPipelines(names []string) {
	owner := map[string]string{} // pipeline of each source
	var seen []string
	for i, p := range c.Pipelines {
		at := fmt.Sprintf("pipelines[%d]", i)
		switch {
		case !nameRule.MatchString(p.Name):
			c.doc.failAt(at+".name", "%q cannot be a name; %s", p.Name, nameHelp)
		case slices.Contains(seen, p.Name):
			c.doc.failAt(at+".name", "%q is the name of another pipeline too", p.Name)
		}
		seen = append(seen, p.Name)
		c.oneOf(at+".on_missing", p.OnMissing, onMissingHold, onMissingBypass)
		c.checkMembers(at, p, names, owner)
		for j, m := range p.Modules {
			c.checkModule(fmt.Sprintf("%s.modules[%d]", at, j), m)
		}
		c.checkPartialTarget(at+".target", p.Target)
		c.checkOutputs(at, p)
	}
	for i, name := range names {
		if owner[name] == "" && slices.Contains(seen, name) {
			c.doc.failAt(fmt.Sprintf("sources[%d].name", i), "%q is the name of a pipeline that does not read it; rename one of them", name)
		}
	}
}

// checkMembers resolves the sources of a pipeline and enters them into owner.
func (c *config) checkMembers(at string, p pipelineConfig, names []string, owner map[string]string) {
	if len(p.Sources) == 0 {
		c.doc.failAt(at+".sources", "is empty; name at least one source, or * for all")
	}
	for i, pattern := range p.Sources {
		where := fmt.Sprintf("%s.sources[%d]", at, i)
		matched, err := match(pattern, names)
		switch {
		case err != nil:
			c.doc.failAt(where, "%q is not a pattern: %v", pattern, err)
		case len(matched) == 0:
			c.doc.failAt(where, "no source is called %q%s", pattern, meant(nearest(pattern, names), names))
		}
		for _, name := range matched {
			if other, taken := owner[name]; taken && other != p.Name {
				c.doc.failAt(where, "source %s belongs to pipeline %s already; a source has one pipeline", name, other)
				continue
			}
			owner[name] = p.Name
			if s := c.source(name); s.Target != (zerobus.Target{}) && p.Target != (zerobus.Target{}) {
				c.doc.failAt(at+".target", "source %s has a target of its own; keep one of the two", name)
			}
		}
	}
}

// match returns the names that a name or glob means.
func match(pattern string, names []string) (out []string, err error) {
	for _, name := range names {
		ok, err := path.Match(pattern, name)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, name)
		}
	}
	return out, nil
}

func (c *config) source(name string) *sourceConfig {
	return &c.Sources[slices.IndexFunc(c.Sources, func(s sourceConfig) bool { return s.Name == name })]
}

func (c *config) checkModule(at string, m moduleConfig) {
	if err := modules.CheckName(m.Name); err != nil {
		c.doc.failAt(at+".name", "%v", err)
	}
	between(c, at+".tick_seconds", m.TickSeconds, 0, 86400)
	c.oneOf(at+".on_fault", m.OnFault, host.FaultHold, host.FaultDeadLetter, host.FaultBypass)
	c.oneOf(at+".stateless", m.Stateless, statelessRelaxed, statelessStrict)
	l := m.Limits
	between(c, at+".limits.memory_mb", l.MemoryMB, 0, 4096)
	between(c, at+".limits.fuel", l.Fuel, 0, 1<<53)
	between(c, at+".limits.fuel_per_row", l.FuelPerRow, 0, 1<<40)
	between(c, at+".limits.deadline_ms", l.DeadlineMS, 0, 60_000)
	between(c, at+".limits.init_deadline_ms", l.InitDeadlineMS, 0, 60_000)
	between(c, at+".limits.log_bytes_per_second", l.LogBytesPerSec, 0, 1<<30)
	between(c, at+".limits.rows_out_per_row_in", l.RowsOutPerRowIn, 0, 10_000)
}

func (c *config) checkOutputs(at string, p pipelineConfig) {
	base := c.outputBase(p)
	for _, name := range slices.Sorted(maps.Keys(p.Outputs)) {
		where := join(at+".outputs", name)
		if !nameRule.MatchString(name) {
			c.doc.failAt(where, "%q cannot be the name of an output; %s", name, nameHelp)
		}
		t := p.Outputs[name]
		if t.Table == "" {
			c.doc.failAt(where, "table is missing; an output has its own")
			continue
		}
		for _, e := range fill(t, base).Validate(where) {
			c.doc.failAt(e.Path, "%s; write it here or in the target of the pipeline or of zerobus", e.Msg)
		}
	}
}

// outputBase is where an output takes catalog and schema from.
func (c *config) outputBase(p pipelineConfig) zerobus.Target {
	base := p.Target
	if c.Zerobus != nil {
		base = fill(base, c.Zerobus.Target)
	}
	return base
}
