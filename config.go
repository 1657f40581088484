package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/edgehost/edgehost/host"
	"github.com/edgehost/edgehost/sinks"
	"github.com/edgehost/edgehost/sinks/file"
	"github.com/edgehost/edgehost/sinks/zerobus"
	"github.com/edgehost/edgehost/sources"
	"github.com/edgehost/edgehost/sources/modbus"
	"github.com/edgehost/edgehost/sources/mqtt"
	"github.com/edgehost/edgehost/sources/opcua"
	"github.com/edgehost/edgehost/spool"
)

// config is the configuration file. It composes the packages' own Configs and
// interprets none of their keys; examples/connector.yaml shows every key with
// its default.
type config struct {
	socketKeys `yaml:",inline"`

	Health  listenConfig `yaml:"health"`
	Metrics listenConfig `yaml:"metrics"`

	Zerobus *zerobusConfig `yaml:"zerobus"`
	Sinks   sinksConfig    `yaml:"sinks"`
	Tables  []tableConfig  `yaml:"tables"`

	Sources   []sourceConfig   `yaml:"sources"`
	Pipelines []pipelineConfig `yaml:"pipelines"`

	Backpressure backpressureConfig `yaml:"backpressure"`
	Spool        spool.KeyConfig    `yaml:"spool"`
	Resilience   resilienceConfig   `yaml:"resilience"`
	Processing   processingConfig   `yaml:"processing"`
	Performance  performanceConfig  `yaml:"performance"`
	Security     securityConfig     `yaml:"security"`
	Monitoring   monitoringConfig   `yaml:"monitoring"`

	doc *document
}

// socketKeys are the keys that say where a running host is found.
type socketKeys struct {
	// StateDir holds everything that must survive: queues, modules, keys, the
	// control socket.
	StateDir string `yaml:"state_dir"`
	Control  struct {
		Socket string `yaml:"socket"` // "": control.sock in StateDir
	} `yaml:"control"`
}

// off is the address of a listener that is not wanted.
const off = "off"

// listenConfig is an HTTP listener: host:port, or off.
type listenConfig struct {
	Listen string `yaml:"listen"`
}

// zerobusConfig is the service and how it is called.
type zerobusConfig struct {
	zerobus.Config `yaml:",inline"`
	// Auth replaces the block of the same name, so that the secret is a Secret.
	Auth authConfig `yaml:"auth"`
	// Reconnect is the back-off between two attempts to open a stream.
	Reconnect sinks.ReconnectConfig `yaml:"reconnect"`
}

type authConfig struct {
	ClientID     string `yaml:"client_id"`
	ClientSecret Secret `yaml:"client_secret"`
	// ClientSecretFile holds the secret instead; it is read for every token, so
	// that a rotated secret needs no restart.
	ClientSecretFile string `yaml:"client_secret_file"`
}

func (c *zerobusConfig) setDefaults() { c.Reconnect = sinks.DefaultReconnectConfig() }

// sinksConfig holds the sinks that stand in for the service.
type sinksConfig struct {
	File *file.Config `yaml:"file"`
}

// tableConfig is a table whose columns the configuration lists.
type tableConfig struct {
	Name    string                 `yaml:"name"` // catalog.schema.table
	Columns []zerobus.ColumnConfig `yaml:"columns"`
}

// sourceConfig is one source: what all protocols share, and the block of one.
type sourceConfig struct {
	Name     string            `yaml:"name"`
	Protocol string            `yaml:"protocol"`
	Enabled  bool              `yaml:"enabled"`
	Endpoint string            `yaml:"endpoint"`
	Tags     map[string]string `yaml:"tags"`
	// Endpoints are those of the mqtt block; either place will do.
	Endpoints []string `yaml:"endpoints"`
	// StaleAfterSeconds is how long a point may be silent before it is reported
	// as stale; 0: for ever. StaleOverrides are for some of them; the first that
	// fits counts.
	StaleAfterSeconds float64         `yaml:"stale_after_seconds"`
	StaleOverrides    []staleOverride `yaml:"stale_overrides"`
	// Timestamp says which clock event times are of; "": source.
	Timestamp string `yaml:"timestamp"`
	// MaxClockSkewSeconds marks records whose event time is further from our
	// clock; 0: never.
	MaxClockSkewSeconds float64 `yaml:"max_clock_skew_seconds"`
	// Isolation is process or none: whether the source runs in a child process,
	// which a hostile peer may crash. "": process for opcua, else none.
	Isolation string `yaml:"isolation"`
	// Reconnect replaces keys of resilience.reconnect for this source.
	Reconnect sources.ReconnectConfig `yaml:"reconnect"`
	Target    zerobus.Target          `yaml:"target"`

	OPCUA  *opcua.Config  `yaml:"opcua"`
	MQTT   *mqtt.Config   `yaml:"mqtt"`
	Modbus *modbus.Config `yaml:"modbus"`
}

func (c *sourceConfig) setDefaults() { c.Enabled = true }

// What stands between a source and the host.
const (
	isolationProcess = "process"
	isolationNone    = "none"
)

// isolated reports whether the source runs in a child process.
func (c *sourceConfig) isolated() bool { return c.OPCUA != nil && c.Isolation != isolationNone }

// pipelineConfig is one pipeline. A source that no pipeline names has one of its
// own, without modules.
type pipelineConfig struct {
	Name      string                    `yaml:"name"`
	Sources   []string                  `yaml:"sources"` // names or globs
	Modules   []moduleConfig            `yaml:"modules"`
	OnMissing string                    `yaml:"on_missing"` // hold or bypass
	Target    zerobus.Target            `yaml:"target"`
	Outputs   map[string]zerobus.Target `yaml:"outputs"`
}

func (c *pipelineConfig) setDefaults() { c.OnMissing = onMissingHold }

// What a pipeline does while a module that it names was never uploaded.
const (
	onMissingHold   = "hold"   // its sources wait
	onMissingBypass = "bypass" // records go past
)

// moduleConfig is one step of a pipeline; the bare name is enough.
type moduleConfig struct {
	Name   string            `yaml:"name"`
	Config map[string]string `yaml:"config"`
	Limits limitsConfig      `yaml:"limits"`
	// TickSeconds calls edgehost_tick so often, for each source; 0 never.
	TickSeconds float64 `yaml:"tick_seconds"`
	// OnFault is what happens when the module faults again and again: hold, dlq or
	// bypass.
	OnFault string `yaml:"on_fault"`
	// Stateless is relaxed or strict.
	Stateless string `yaml:"stateless"`
}

func (c *moduleConfig) setDefaults() { c.OnFault, c.Stateless = host.FaultHold, statelessRelaxed }

// What is left of a module's memory from batch to batch.
const (
	statelessRelaxed = "relaxed" // it is a cache, put back after a fault
	statelessStrict  = "strict"  // nothing: it is put back after every batch
)

func (c *moduleConfig) fromScalar(name string) { c.Name = name }

// limitsConfig bounds one module; 0 is the sandbox's default.
type limitsConfig struct {
	MemoryMB        int   `yaml:"memory_mb"`
	Fuel            int64 `yaml:"fuel"`             // for one batch
	FuelPerRow      int64 `yaml:"fuel_per_row"`     // for each record of it in addition
	DeadlineMS      int   `yaml:"deadline_ms"`      // for one batch
	InitDeadlineMS  int   `yaml:"init_deadline_ms"` // for the start of the module
	LogBytesPerSec  int   `yaml:"log_bytes_per_second"`
	RowsOutPerRowIn int   `yaml:"rows_out_per_row_in"`
}

type backpressureConfig struct {
	Enabled     bool `yaml:"enabled"`
	MemoryQueue struct {
		MaxSize    int    `yaml:"max_size"` // records
		DropPolicy string `yaml:"drop_policy"`
	} `yaml:"memory_queue"`
	DiskSpool struct {
		Enabled    bool   `yaml:"enabled"`
		MaxSizeMB  int    `yaml:"max_size_mb"` // 1,000,000 bytes
		DropPolicy string `yaml:"drop_policy"`
		Encryption bool   `yaml:"encryption"`
		// RetentionSeconds keeps what was delivered for replay.
		RetentionSeconds float64 `yaml:"retention_seconds"`
	} `yaml:"disk_spool"`
	DeadLetterQueue struct {
		MaxSizeMB int `yaml:"max_size_mb"`
	} `yaml:"dead_letter_queue"`
}

// The drop policies.
const (
	dropOldest = "oldest"
	dropNewest = "newest"
	dropReject = "reject" // nothing is dropped: the device waits
)

type resilienceConfig struct {
	CircuitBreaker sinks.BreakerConfig     `yaml:"circuit_breaker"`
	Reconnect      sources.ReconnectConfig `yaml:"reconnect"` // of sources
}

type processingConfig struct {
	Batch struct {
		MaxSize        int     `yaml:"max_size"`         // records in one request to the service
		MaxWaitSeconds float64 `yaml:"max_wait_seconds"` // before a smaller one is sent
	} `yaml:"batch"`
}

type performanceConfig struct {
	Workers struct {
		// ReaderThreads is how many sources of one pipeline are transformed at the
		// same time; 0, or more than there are, is the number of cores.
		ReaderThreads int `yaml:"reader_threads"`
		WriterThreads int `yaml:"writer_threads"`
	} `yaml:"workers"`
	Memory struct {
		MaxHeapMB  int    `yaml:"max_heap_mb"` // 1,048,576 bytes; 0: no limit
		GCStrategy string `yaml:"gc_strategy"`
	} `yaml:"memory"`
}

type securityConfig struct {
	Certificates struct {
		AutoRotation             bool `yaml:"auto_rotation"`
		RotationDaysBeforeExpiry int  `yaml:"rotation_days_before_expiry"`
	} `yaml:"certificates"`
	Network struct {
		RequiredOutbound []string `yaml:"required_outbound"`
	} `yaml:"network"`
}

type monitoringConfig struct {
	Tracing struct {
		Enabled bool `yaml:"enabled"`
		OTLP    struct {
			Endpoint string `yaml:"endpoint"`
		} `yaml:"otlp"`
	} `yaml:"tracing"`
	Logging loggingConfig `yaml:"logging"`
}

// loggingConfig is where the log goes: stderr always, and a file when named.
type loggingConfig struct {
	Level      string `yaml:"level"`  // DEBUG, INFO, WARN, ERROR
	Format     string `yaml:"format"` // json or text
	FilePath   string `yaml:"file_path"`
	MaxSizeMB  int    `yaml:"max_size_mb"`
	MaxBackups int    `yaml:"max_backups"`
	MaxAgeDays int    `yaml:"max_age_days"` // 0: as long as MaxBackups keeps it
}

// newConfig returns the configuration of an empty file.
func newConfig() *config {
	c := &config{socketKeys: socketKeys{StateDir: "spool"},
		Health: listenConfig{"127.0.0.1:8080"}, Metrics: listenConfig{"127.0.0.1:9090"},
		Resilience: resilienceConfig{CircuitBreaker: sinks.DefaultBreakerConfig()}}
	b := &c.Backpressure
	b.Enabled = true
	b.MemoryQueue.MaxSize, b.MemoryQueue.DropPolicy = 10000, dropReject
	b.DiskSpool.Enabled, b.DiskSpool.Encryption = true, true
	b.DiskSpool.MaxSizeMB, b.DiskSpool.DropPolicy = 1000, dropReject
	b.DeadLetterQueue.MaxSizeMB = 64
	c.Processing.Batch.MaxSize, c.Processing.Batch.MaxWaitSeconds = 100, 5
	c.Security.Certificates.AutoRotation, c.Security.Certificates.RotationDaysBeforeExpiry = true, 30
	c.Monitoring.Logging = loggingConfig{Level: "INFO", Format: "json", MaxSizeMB: 100, MaxBackups: 5}
	return c
}

// maxConfigSize bounds a configuration file, in bytes.
const maxConfigSize = 4 << 20

// loadConfig reads and checks a configuration file. lookup is the environment.
// The error is a problems when the file was read: all that is wrong with it.
func loadConfig(path string, lookup func(string) (string, bool)) (*config, error) {
	src, err := readConfig(path)
	if err != nil {
		return nil, err
	}
	c := parseConfig(path, src, lookup)
	if len(c.doc.found) > 0 {
		return nil, c.doc.found
	}
	return c, nil
}

func readConfig(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no configuration file %s; start from examples/connector.yaml", path)
	case err != nil:
		return nil, fmt.Errorf("read configuration: %w", err)
	case info.IsDir():
		return nil, fmt.Errorf("read configuration: %s is a directory; name the file in it", path)
	case info.Size() > maxConfigSize:
		return nil, fmt.Errorf("read configuration: %s has %d bytes, more than a configuration can have", path, info.Size())
	}
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return src, nil
}

// parseConfig decodes and checks; what is wrong is in the document.
func parseConfig(path string, src []byte, lookup func(string) (string, bool)) *config {
	c := newConfig()
	c.doc = &document{file: path, lookup: lookup}
	c.doc.decode(src, c)
	unread := c.doc.found
	c.check()
	c.doc.found = append(unread, slices.DeleteFunc(slices.Clone(c.doc.found[len(unread):]), func(p problem) bool {
		return slices.ContainsFunc(unread, func(u problem) bool { return echoes(p.path, u.path) })
	})...)
	c.doc.sort()
	return c
}

// echoes reports whether what is wrong with a key may come of another, or of one in
// another's block, that could not be read: one typing error is one problem.
func echoes(path, unread string) bool {
	block := func(p string) string { return p[:max(0, strings.LastIndexAny(p, ".["))] }
	within := func(p, b string) bool {
		return b == "" || p == b || strings.HasPrefix(p, b+".") || strings.HasPrefix(p, b+"[")
	}
	switch {
	case block(unread) == "" && within(path, "pipelines"), within(unread, "sources") && within(path, "pipelines"): // they name sources
		return true
	case block(unread) == "":
		return unread == "" || within(path, unread) || block(path) == ""
	}
	return within(path, block(unread)) || within(unread, path)
}

// readPart decodes only some keys of a configuration, those of part: whoever
// looks for a running host does not need the secrets that its file refers to.
func readPart(path string, lookup func(string) (string, bool), part any) error {
	src, err := readConfig(path)
	if err != nil {
		return &exitError{exitConfig, err}
	}
	d := &document{file: path, lookup: lookup, lenient: true}
	d.decode(src, part)
	if len(d.found) > 0 {
		return d.found
	}
	return nil
}

// socketOf returns the control socket of a configuration.
func socketOf(path string, lookup func(string) (string, bool)) (string, error) {
	part := newConfig().socketKeys
	err := readPart(path, lookup, &part)
	return part.socket(), err
}

// healthAddrOf returns health.listen of a configuration.
func healthAddrOf(path string, lookup func(string) (string, bool)) (string, error) {
	part := struct {
		Health listenConfig `yaml:"health"`
	}{newConfig().Health}
	err := readPart(path, lookup, &part)
	return part.Health.Listen, err
}

// socket is the path of the control socket.
func (c socketKeys) socket() string {
	if c.Control.Socket != "" {
		return c.Control.Socket
	}
	return controlSocket(c.StateDir)
}

func controlSocket(stateDir string) string { return filepath.Join(stateDir, "control.sock") }
