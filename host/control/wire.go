// Package control is the admin API of a running host: HTTP and JSON over a unix
// socket that only its owner can open. Server and client of the one wire live
// here together, with the types that cross it and the interface that a host
// implements.
//
//	edgehost status ──Client──> control.sock ──Server──> Backend (the host)
//	curl :8080/health, :9090/metrics ──────────────────> Backend.Status
//
// Every type of this file is part of the wire: JSON names stay, fields are only
// added. Nothing that crosses it holds a secret.
package control

import (
	"context"
	"encoding/json"
	"time"
)

// MaxModule is the largest module that can be uploaded, in bytes.
const MaxModule = 16 << 20

// Backend is what a host can be asked. Any number of goroutines may call it at
// once. ctx ends when the caller goes away. An error made by Errorf crosses the
// wire with its code; every other error arrives as Internal with its text.
type Backend interface {
	// Status describes everything at one moment. It is called often (health
	// checks, scrapes), so it must not wait for a device, a disk or a service.
	Status(ctx context.Context) (Status, error)

	// PushModule admits a module, keeps it as a revision and, when Activate is
	// set, puts it in force under its name. After an error the revision that was
	// running runs on.
	PushModule(ctx context.Context, r PushRequest) (Module, error)
	// Modules lists all names, sorted.
	Modules(ctx context.Context) ([]Module, error)
	// RollbackModule puts the revision that was active before back in force.
	RollbackModule(ctx context.Context, name string) (Module, error)

	// Replay sends records that were delivered before once more, beside the live
	// traffic. It returns when the last of them is acknowledged, or when ctx ends;
	// then what was sent so far stays sent and the error is ctx.Err().
	Replay(ctx context.Context, r ReplayRequest) (ReplayResult, error)

	// DeadLetters lists what the filter selects, oldest first, without contents.
	DeadLetters(ctx context.Context, f DeadLetterFilter) ([]DeadLetter, error)
	// DeadLetter returns one entry with its contents, or NotFound.
	DeadLetter(ctx context.Context, id string) (DeadLetter, error)
	// ReplayDeadLetters moves the entries back to where they came from (the
	// pipeline's modules or the destination's queue) and says how many.
	ReplayDeadLetters(ctx context.Context, f DeadLetterFilter) (n int, err error)
	// PurgeDeadLetters deletes the entries for ever and says how many. The ledger
	// keeps counting them as dead-lettered.
	PurgeDeadLetters(ctx context.Context, f DeadLetterFilter) (n int, err error)

	// PauseSource ends the run of a source in order and returns when nothing of it
	// runs any more; what it has emitted is committed and delivered. It stays
	// paused until ResumeSource or a restart of the host. Pausing twice is no error;
	// a source that does not stop within ten seconds is one, with code Busy.
	PauseSource(ctx context.Context, name string) error
	// ResumeSource lets a source run again; one that is not paused runs on.
	ResumeSource(ctx context.Context, name string) error

	// ResetBreaker closes the breaker of a destination, or probes a destination
	// that is held, now instead of at the next probe.
	ResetBreaker(ctx context.Context, destination string) error
}

// The three states of a host.
const (
	Healthy   = "healthy"   // everything that is configured works
	Degraded  = "degraded"  // data flows or is kept safe, but a person should look
	Unhealthy = "unhealthy" // data is refused or lost, or nothing flows at all
)

// Status is everything that the status command, /health and /metrics show.
type Status struct {
	Version       string    `json:"version"`
	StartedAt     time.Time `json:"started_at"`
	UptimeSeconds float64   `json:"uptime_seconds"`
	Status        string    `json:"status"` // Healthy, Degraded or Unhealthy
	// Reasons says in one line each why Status is not Healthy.
	Reasons []string `json:"reasons,omitempty"`
	// Ready is true once the state is open and the sources have been started.
	Ready bool `json:"ready"`

	Sources      []SourceStatus      `json:"sources"`
	Pipelines    []PipelineStatus    `json:"pipelines"`
	Destinations []DestinationStatus `json:"destinations"`
	DeadLetters  DeadLetterStatus    `json:"dead_letters"`
	Spool        SpoolStatus         `json:"spool"`
	ModuleCache  ModuleCacheStatus   `json:"module_cache"`
	Ledger       Ledger              `json:"ledger"`

	// NotInForce lists configuration keys that were accepted and have no effect.
	NotInForce []string `json:"not_in_force,omitempty"`
}

// ModuleCacheStatus is compiled code that is kept on disk; all zero when none is. Counters
// run since the process started.
type ModuleCacheStatus struct {
	Hits    uint64 `json:"hits"`    // modules whose code was found
	Misses  uint64 `json:"misses"`  // modules that were compiled
	Refused uint64 `json:"refused"` // entries that were damaged or foreign
	Removed uint64 `json:"removed"` // entries of other versions, and those that gave room
	Failed  uint64 `json:"failed"`  // errors of the disk
	Entries int    `json:"entries"`
	Bytes   int64  `json:"bytes"`
}

// SourceStatus is one configured source. Counters run since the process started.
type SourceStatus struct {
	Name     string             `json:"name"`
	Protocol string             `json:"protocol"`
	Pipeline string             `json:"pipeline"`
	State    string             `json:"state"` // disabled, starting, connecting, connected, degraded, stalled, reconnecting, auth_failed, failed, paused, stopped
	Detail   string             `json:"detail,omitempty"`
	Since    time.Time          `json:"since"`
	LastRead time.Time          `json:"last_read"` // zero: never
	Records  uint64             `json:"records"`
	Bytes    uint64             `json:"bytes"`
	Failed   map[string]uint64  `json:"failed,omitempty"`   // by reason: records that the source itself could not make or had to drop
	Counters map[string]float64 `json:"counters,omitempty"` // the protocol's own metrics, named as on /metrics
	// Points were heard since the process started, when stale_after_seconds watches
	// them; PointsStale of them are silent, and Unwatched records were of points
	// beyond the bound.
	Points      int      `json:"points"`
	PointsStale int      `json:"points_stale"`
	Unwatched   uint64   `json:"unwatched,omitempty"`
	LagSeconds  *float64 `json:"lag_seconds,omitempty"` // our clock minus the event time of the last record; absent: none came
}

// Flows reports whether data can come from the source now.
func (s SourceStatus) Flows() bool { return s.State == "connected" || s.State == "degraded" }

// The states of a pipeline.
const (
	PipelineRunning = "running"
	PipelineHeld    = "held"    // a module cannot go on: input is kept, sealed, until it is mended
	PipelineWaiting = "waiting" // a module that it names was never uploaded: reading is paused
)

// PipelineStatus is one pipeline: some sources, a chain of modules, targets.
type PipelineStatus struct {
	Name    string         `json:"name"`
	State   string         `json:"state"`
	Detail  string         `json:"detail,omitempty"` // why it is not running and what to do
	Sources []string       `json:"sources"`
	Modules []ModuleInUse  `json:"modules,omitempty"`
	Targets []string       `json:"targets"` // destinations that it appends to
	Queued  QueueDepth     `json:"queued"`  // input in memory, not yet committed
	Ledger  PipelineLedger `json:"ledger"`
}

// ModuleInUse is one module of a pipeline as it runs now.
type ModuleInUse struct {
	Name    string  `json:"name"`
	Digest  string  `json:"digest,omitempty"` // "" while no revision is active
	Calls   uint64  `json:"calls"`
	Faults  uint64  `json:"faults"`
	Seconds float64 `json:"seconds"`    // time spent inside, summed
	Fuel    uint64  `json:"fuel"`       // fuel burnt, summed
	Memory  uint64  `json:"memory"`     // linear memory of all instances, in bytes
	Last    string  `json:"last_fault"` // words of the last fault, "" if none
	// Instances are those of the revision that runs; Recycled counts those that were
	// replaced because their memory had grown.
	Instances int    `json:"instances"`
	Recycled  uint64 `json:"recycled"`
	// FaultsByClass counts faults by class; Counters and Gauges are the metrics of
	// the module's own.
	FaultsByClass map[string]uint64  `json:"faults_by_class,omitempty"`
	Counters      map[string]float64 `json:"counters,omitempty"`
	Gauges        map[string]float64 `json:"gauges,omitempty"`
}

// The states of a destination.
const (
	DestinationConnecting    = "connecting"
	DestinationConnected     = "connected"
	DestinationCircuitOpen   = "circuit_open"   // the breaker is open; the queue grows
	DestinationAuthFailed    = "auth_failed"    // the token or a grant is refused
	DestinationSchemaUnknown = "schema_unknown" // the table's schema is not known yet
	DestinationHeld          = "held"           // a person must act; the queue stays whole
	DestinationStopped       = "stopped"
)

// DestinationStatus is one table that the host delivers to.
type DestinationStatus struct {
	Name   string `json:"name"` // catalog.schema.table
	Sink   string `json:"sink"` // zerobus or file
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`

	Breaker BreakerStatus `json:"breaker"`
	Queue   QueueDepth    `json:"queue"`  // waiting for delivery: memory and spool together
	Memory  QueueDepth    `json:"memory"` // the part of Queue that is in memory as well
	Oldest  time.Time     `json:"oldest"` // when the oldest waiting record was appended; zero: nothing waits
	// BytesOnDisk includes acknowledged frames that are kept for replay.
	BytesOnDisk uint64 `json:"bytes_on_disk"`
	// LastDelivered is when the newest acknowledgement came; zero: never.
	LastDelivered time.Time         `json:"last_delivered"`
	Latency       Histogram         `json:"latency"` // from read to acknowledgement, one observation a batch, in seconds
	Ledger        DestinationLedger `json:"ledger"`
}

// The states of a breaker.
const (
	BreakerClosed   = "closed"
	BreakerOpen     = "open"
	BreakerHalfOpen = "half_open"
	BreakerDisabled = "disabled"
)

// BreakerStatus says where the breaker of a destination stands.
type BreakerStatus struct {
	State     string    `json:"state"`
	Failures  uint64    `json:"failures"` // in a row
	LastError string    `json:"last_error,omitempty"`
	OpenedAt  time.Time `json:"opened_at"`  // zero: closed
	NextProbe time.Time `json:"next_probe"` // zero: closed
}

// QueueDepth is what waits somewhere.
type QueueDepth struct {
	Records uint64 `json:"records"`
	Bytes   uint64 `json:"bytes"`
}

// SpoolStatus is the disk that all queues share.
type SpoolStatus struct {
	Dir        string `json:"dir"`
	Bytes      uint64 `json:"bytes"`       // on disk now, everything included
	Cap        uint64 `json:"cap"`         // disk_spool.max_size_mb in bytes; 0: memory only
	Encrypted  bool   `json:"encrypted"`   //
	DropPolicy string `json:"drop_policy"` // oldest, newest or reject
	// SecondsToFull is how long the cap lasts at the present rates; 0: not filling.
	SecondsToFull float64 `json:"seconds_to_full,omitempty"`
	// Error says why nothing can be written (disk full, I/O error); "": it can.
	Error string `json:"error,omitempty"`
}

// DeadLetterStatus sums up the dead-letter queue.
type DeadLetterStatus struct {
	Entries uint64 `json:"entries"`
	Bytes   uint64 `json:"bytes"`
	Cap     uint64 `json:"cap"` // in bytes
	// Total counts, by reason, what was ever dead-lettered.
	Total map[string]uint64 `json:"total,omitempty"`
}

// Histogram is a cumulative histogram: Counts[i] observations were <= Bounds[i].
type Histogram struct {
	Bounds []float64 `json:"bounds,omitempty"`
	Counts []uint64  `json:"counts,omitempty"`
	Count  uint64    `json:"count"` // of all observations
	Sum    float64   `json:"sum"`
}

// Ledger accounts for every record, counted on its own in each term and kept
// over restarts. Read is the sum of the pipelines, Delivered, Waiting and
// DeadLettered that of the destinations (DeadLettered with what modules
// rejected), Dropped that of both.
type Ledger struct {
	Pipelines    []PipelineLedger    `json:"pipelines"`
	Destinations []DestinationLedger `json:"destinations"`

	Read         uint64 `json:"read"`
	Delivered    uint64 `json:"delivered"`
	Waiting      uint64 `json:"waiting"`
	Filtered     uint64 `json:"filtered"`
	DeadLettered uint64 `json:"dead_lettered"`
	Dropped      uint64 `json:"dropped"`
	Held         uint64 `json:"held"`
	// Balanced: every pipeline and destination balances, and what the pipelines
	// emitted is what was appended.
	Balanced bool `json:"balanced"`
}

// PipelineLedger balances when Read = Transformed + Filtered + Rejected + Held +
// Dropped. Emitted counts outputs: fan-out and ticks included.
type PipelineLedger struct {
	Name        string `json:"name"`
	Read        uint64 `json:"read"`
	Transformed uint64 `json:"transformed"`
	Filtered    uint64 `json:"filtered"`
	Rejected    uint64 `json:"rejected"`
	Held        uint64 `json:"held"`
	Dropped     uint64 `json:"dropped"`
	Emitted     uint64 `json:"emitted"`
	Balanced    bool   `json:"balanced"`
}

// DestinationLedger balances when Appended = Delivered + Waiting + DeadLettered +
// Dropped. Replayed counts deliveries that were repeated on purpose.
type DestinationLedger struct {
	Name         string `json:"name"`
	Appended     uint64 `json:"appended"`
	Delivered    uint64 `json:"delivered"`
	Waiting      uint64 `json:"waiting"`
	DeadLettered uint64 `json:"dead_lettered"`
	Dropped      uint64 `json:"dropped"`
	Replayed     uint64 `json:"replayed"`
	Balanced     bool   `json:"balanced"`
}

// PushRequest uploads a module. On the wire Wasm is the body of the request.
type PushRequest struct {
	Name     string
	Wasm     []byte // at most MaxModule bytes
	Activate bool   // false: keep the revision, leave the name where it points
	// By is who uploads, as the kernel says of the connection: the server fills it,
	// and what a client puts here is not sent. "": not known.
	By string
}

// Module is a name and the revisions that it has pointed at.
type Module struct {
	Name      string     `json:"name"`
	Active    string     `json:"active,omitempty"` // digest; "": none
	Revisions []Revision `json:"revisions"`        // newest first
	Pipelines []string   `json:"pipelines,omitempty"`
}

// Revision is one immutable module.
type Revision struct {
	Digest string    `json:"digest"` // sha256 in hex
	Size   int64     `json:"size"`
	At     time.Time `json:"at"`           // when the name first pointed at it
	By     string    `json:"by,omitempty"` // user that uploaded it first; "": not known
}

// ReplayRequest selects records of a destination's queue that were
// acknowledged and are still kept. Zero values select everything.
type ReplayRequest struct {
	Destination string    `json:"destination,omitempty"` // "": all
	Since       time.Time `json:"since,omitzero"`        // appended at or after
	Until       time.Time `json:"until,omitzero"`        // appended before
	FromSeq     uint64    `json:"from_seq,omitempty"`
	Rate        int       `json:"rate,omitempty"` // records a second; 0: the host's default
	DryRun      bool      `json:"dry_run,omitempty"`
}

// ReplayResult says what was sent again, or would be.
type ReplayResult struct {
	DryRun       bool                `json:"dry_run"`
	Records      uint64              `json:"records"`
	Bytes        uint64              `json:"bytes"`
	Destinations []ReplayDestination `json:"destinations"`
}

// ReplayDestination is the part of a replay that concerns one destination.
type ReplayDestination struct {
	Name     string    `json:"name"`
	Records  uint64    `json:"records"`
	Bytes    uint64    `json:"bytes"`
	FirstSeq uint64    `json:"first_seq,omitempty"`
	LastSeq  uint64    `json:"last_seq,omitempty"`
	First    time.Time `json:"first,omitzero"` // when the first of them was appended
	Last     time.Time `json:"last,omitzero"`
}

// DeadLetterFilter selects entries; the conditions add up. Zero values select
// everything.
type DeadLetterFilter struct {
	IDs         []string `json:"ids,omitempty"`
	Reason      string   `json:"reason,omitempty"`
	Destination string   `json:"destination,omitempty"`
	Pipeline    string   `json:"pipeline,omitempty"`
	Source      string   `json:"source,omitempty"`
	After       string   `json:"after,omitempty"` // list what follows this id
	Limit       int      `json:"limit,omitempty"` // 0: the host's default
}

// DeadLetter is one record that could not go on, and why.
type DeadLetter struct {
	ID          string    `json:"id"`
	Time        time.Time `json:"time"`
	Reason      string    `json:"reason"` // a short class: rejected, schema, too_large, rejected_permanent, module_fault
	Error       string    `json:"error"`  // the module's or the service's words
	Pipeline    string    `json:"pipeline,omitempty"`
	Module      string    `json:"module,omitempty"`   // the module that rejected it, or failed at it
	Revision    string    `json:"revision,omitempty"` // the digest of that module
	Destination string    `json:"destination,omitempty"`
	Source      string    `json:"source"`
	Address     string    `json:"address"`
	EventTime   time.Time `json:"event_time"`
	Bytes       uint64    `json:"bytes"`
	// Record is the record as JSON; only DeadLetter fills it.
	Record json.RawMessage `json:"record,omitempty"`
}
