package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/edgehost/edgehost/host/control"
	"github.com/edgehost/edgehost/host/sandbox"
)

// metricsHandler answers /metrics from Backend.Status, one call a scrape.
func metricsHandler(backend control.Backend, log *slog.Logger) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(statusCollector{backend}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError), ErrorHandling: promhttp.HTTPErrorOnError}))
	return mux
}

// metric is one name on /metrics. The first six are the document's.
type metric struct {
	name, help string
	kind       prometheus.ValueType
	labels     []string
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

// The metrics of a Status. Labels hold names of the configuration and constants
// of the program: they are bounded in number.
var (
	mRead       = metric{"records_read_total", "Records read from sources.", counter, []string{"source", "protocol"}}
	mWritten    = metric{"records_written_total", "Records that a destination acknowledged.", counter, []string{"destination"}}
	mFailed     = metric{"records_failed_total", "Records that a source could not make, that were dead-lettered, or that were dropped by a policy.", counter, []string{"stage", "name", "reason"}}
	mLatency    = metric{"batch_latency_seconds", "Time from reading a batch to its acknowledgement.", prometheus.UntypedValue, []string{"destination"}}
	mDepth      = metric{"queue_depth", "Records that were read and are not delivered yet, in memory and in the spool.", gauge, nil}
	mConnection = metric{"connection_status", "1 while data can flow, else 0.", gauge, []string{"kind", "name"}}

	mState       = metric{"state_info", "1 for the state that something is in.", gauge, []string{"kind", "name", "state"}}
	mInfo        = metric{"edgehost_info", "The version that runs.", gauge, []string{"version"}}
	mHealthy     = metric{"edgehost_healthy", "1 healthy, 0.5 degraded, 0 unhealthy.", gauge, nil}
	mUptime      = metric{"edgehost_uptime_seconds", "Time since the host started.", gauge, nil}
	mBytesRead   = metric{"bytes_read_total", "Bytes read from sources.", counter, []string{"source", "protocol"}}
	mLastRecord  = metric{"last_record_timestamp_seconds", "When a source last read a record.", gauge, []string{"source", "protocol"}}
	mLag         = metric{"source_lag_seconds", "How far the last record was behind the clock when it was taken; negative when the device's clock is ahead.", gauge, []string{"source", "protocol"}}
	mPoints      = metric{"edgehost_source_points", "Points that are watched for silence.", gauge, []string{"source", "protocol"}}
	mStale       = metric{"edgehost_source_points_stale", "Points that are silent for longer than stale_after_seconds.", gauge, []string{"source", "protocol"}}
	mUnwatched   = metric{"edgehost_source_unwatched_records_total", "Records of points that are too many to be watched.", counter, []string{"source", "protocol"}}
	mPipeQueue   = metric{"pipeline_queue_records", "Records in the memory of a pipeline, not yet durable.", gauge, []string{"pipeline"}}
	mQueue       = metric{"destination_queue_records", "Records that wait for delivery, by where they are; the spool has all of them.", gauge, []string{"destination", "where"}}
	mQueueBytes  = metric{"destination_queue_bytes", "Bytes that wait for delivery, by where they are.", gauge, []string{"destination", "where"}}
	mOldest      = metric{"destination_oldest_timestamp_seconds", "When the oldest record that waits was appended; 0 when none waits.", gauge, []string{"destination"}}
	mLastAck     = metric{"destination_last_delivered_timestamp_seconds", "When a destination last acknowledged.", gauge, []string{"destination"}}
	mBreaker     = metric{"breaker_open", "1 while the breaker of a destination is open, 0.5 half open.", gauge, []string{"destination"}}
	mFailures    = metric{"breaker_failures", "Failures of a destination in a row.", gauge, []string{"destination"}}
	mModCalls    = metric{"module_calls_total", "Calls of a module.", counter, []string{"pipeline", "module"}}
	mModFaults   = metric{"module_faults_total", "Calls of a module that trapped, ran out of fuel or broke a limit.", counter, []string{"pipeline", "module"}}
	mModSeconds  = metric{"module_seconds_total", "Time spent in a module.", counter, []string{"pipeline", "module"}}
	mModFuel     = metric{"module_fuel_total", "Fuel that a module burnt.", counter, []string{"pipeline", "module"}}
	mModClass    = metric{"module_faults_by_class_total", "Faults of a module by class.", counter, []string{"pipeline", "module", "class"}}
	mModCounter  = metric{"module_counter_total", "Counters of a module's own.", counter, []string{"pipeline", "module", "metric"}}
	mModGauge    = metric{"module_gauge", "Gauges of a module's own.", gauge, []string{"pipeline", "module", "metric"}}
	mModMemory   = metric{"module_memory_bytes", "Linear memory of all instances of a module.", gauge, []string{"pipeline", "module"}}
	mModInst     = metric{"module_instances", "Instances of a module.", gauge, []string{"pipeline", "module"}}
	mModRecycled = metric{"module_recycled_total", "Instances of a module that were replaced because their memory had grown.", counter, []string{"pipeline", "module"}}
	mCacheHits   = metric{"module_cache_hits_total", "Modules whose compiled code was found on disk.", counter, nil}
	mCacheMisses = metric{"module_cache_misses_total", "Modules that were compiled although compiled code is kept on disk.", counter, nil}
	mCacheBad    = metric{"module_cache_refused_total", "Entries of compiled code that were damaged or foreign: they were not executed and are gone.", counter, nil}
	mCacheGone   = metric{"module_cache_removed_total", "Entries of compiled code that were of another version or gave room.", counter, nil}
	mCacheErrors = metric{"module_cache_errors_total", "Errors of the disk that keeps compiled code.", counter, nil}
	mCacheKept   = metric{"module_cache_entries", "Entries of compiled code on disk.", gauge, nil}
	mCacheBytes  = metric{"module_cache_bytes", "Bytes of compiled code on disk.", gauge, nil}
	mLedger      = metric{"ledger_records", "The terms of the ledger.", gauge, []string{"scope", "name", "term"}}
	mBalanced    = metric{"ledger_balanced", "1 while the ledger balances.", gauge, nil}
	mSpoolBytes  = metric{"spool_bytes", "Bytes of the spool on disk.", gauge, nil}
	mSpoolCap    = metric{"spool_cap_bytes", "Bytes that the spool may take.", gauge, nil}
	mSpoolFull   = metric{"spool_seconds_to_full", "How long the cap lasts at the present rates; 0 when it is not filling.", gauge, nil}
	mSpoolOK     = metric{"spool_writable", "0 when nothing can be written.", gauge, nil}
	mLetters     = metric{"dead_letters", "Entries in the dead-letter queue.", gauge, nil}
	mLetterBytes = metric{"dead_letter_bytes", "Bytes of the dead-letter queue.", gauge, nil}
	mLetterCap   = metric{"dead_letter_cap_bytes", "Bytes that the dead-letter queue may take.", gauge, nil}
)

func (m metric) desc() *prometheus.Desc { return prometheus.NewDesc(m.name, m.help, m.labels, nil) }

// statusCollector makes metrics of Backend.Status. It describes none before, so
// that protocols can add their own.
type statusCollector struct{ backend control.Backend }

// Describe implements prometheus.Collector.
func (statusCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c statusCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
	defer cancel()
	s, err := c.backend.Status(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(mInfo.desc(), fmt.Errorf("read status of the host: %w", err))
		return
	}
	g := gatherer{out: out, used: map[string]bool{}}
	g.host(s)
	g.sources(s)
	g.pipelines(s)
	g.destinations(s)
	g.failed(s)
	g.counters(s.Sources)
}

// gatherer sends metrics and remembers their names.
type gatherer struct {
	out  chan<- prometheus.Metric
	used map[string]bool
}

func (g *gatherer) add(m metric, v float64, labels ...string) {
	g.used[m.name] = true
	for i := range labels {
		labels[i] = strings.ToValidUTF8(labels[i], "?")
	}
	sample, err := prometheus.NewConstMetric(m.desc(), m.kind, v, labels...)
	if err != nil {
		sample = prometheus.NewInvalidMetric(m.desc(), err)
	}
	g.out <- sample
}

func (g *gatherer) state(kind, name, state string, flows bool) {
	g.add(mConnection, truth(flows), kind, name)
	g.add(mState, 1, kind, name, state)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (g *gatherer) host(s control.Status) {
	g.add(mInfo, 1, s.Version)
	g.add(mHealthy, map[string]float64{control.Healthy: 1, control.Degraded: 0.5}[s.Status])
	g.add(mUptime, s.UptimeSeconds)
	g.add(mDepth, float64(depth(s)))
	g.add(mBalanced, truth(s.Ledger.Balanced))
	g.add(mSpoolBytes, float64(s.Spool.Bytes))
	g.add(mSpoolCap, float64(s.Spool.Cap))
	g.add(mSpoolFull, s.Spool.SecondsToFull)
	g.add(mSpoolOK, truth(s.Spool.Error == ""))
	g.add(mLetters, float64(s.DeadLetters.Entries))
	g.add(mLetterBytes, float64(s.DeadLetters.Bytes))
	g.add(mLetterCap, float64(s.DeadLetters.Cap))
	c := s.ModuleCache
	g.add(mCacheHits, float64(c.Hits))
	g.add(mCacheMisses, float64(c.Misses))
	g.add(mCacheBad, float64(c.Refused))
	g.add(mCacheGone, float64(c.Removed))
	g.add(mCacheErrors, float64(c.Failed))
	g.add(mCacheKept, float64(c.Entries))
	g.add(mCacheBytes, float64(c.Bytes))
}

func (g *gatherer) sources(s control.Status) {
	for _, x := range s.Sources {
		g.state("source", x.Name, x.State, x.Flows())
		g.add(mRead, float64(x.Records), x.Name, x.Protocol)
		g.add(mBytesRead, float64(x.Bytes), x.Name, x.Protocol)
		if !x.LastRead.IsZero() {
			g.add(mLastRecord, float64(x.LastRead.UnixMilli())/1000, x.Name, x.Protocol)
		}
		if x.LagSeconds != nil {
			g.add(mLag, *x.LagSeconds, x.Name, x.Protocol)
		}
		g.add(mPoints, float64(x.Points), x.Name, x.Protocol)
		g.add(mStale, float64(x.PointsStale), x.Name, x.Protocol)
		g.add(mUnwatched, float64(x.Unwatched), x.Name, x.Protocol)
	}
}

func (g *gatherer) pipelines(s control.Status) {
	for _, p := range s.Pipelines {
		g.add(mState, 1, "pipeline", p.Name, p.State)
		g.add(mPipeQueue, float64(p.Queued.Records), p.Name)
		l := p.Ledger
		g.terms("pipeline", p.Name, map[string]uint64{"read": l.Read, "transformed": l.Transformed, "filtered": l.Filtered,
			"rejected": l.Rejected, "held": l.Held, "dropped": l.Dropped, "emitted": l.Emitted})
		seen := map[string]bool{}
		for _, m := range p.Modules {
			if seen[m.Name] {
				continue // a module that stands twice in a chain has one set of metrics
			}
			seen[m.Name] = true
			g.add(mModCalls, float64(m.Calls), p.Name, m.Name)
			g.add(mModFaults, float64(m.Faults), p.Name, m.Name)
			g.add(mModSeconds, m.Seconds, p.Name, m.Name)
			g.add(mModFuel, float64(m.Fuel), p.Name, m.Name)
			g.add(mModMemory, float64(m.Memory), p.Name, m.Name)
			g.add(mModInst, float64(m.Instances), p.Name, m.Name)
			g.add(mModRecycled, float64(m.Recycled), p.Name, m.Name)
			for _, class := range sandbox.Classes {
				g.add(mModClass, float64(m.FaultsByClass[string(class)]), p.Name, m.Name, string(class))
			}
			for name, v := range m.Counters {
				g.add(mModCounter, v, p.Name, m.Name, name)
			}
			for name, v := range m.Gauges {
				g.add(mModGauge, v, p.Name, m.Name, name)
			}
		}
	}
}

func (g *gatherer) destinations(s control.Status) {
	for _, d := range s.Destinations {
		g.state("destination", d.Name, d.State, d.State == control.DestinationConnected)
		g.add(mWritten, float64(d.Ledger.Delivered), d.Name)
		g.add(mQueue, float64(d.Queue.Records), d.Name, "spool")
		g.add(mQueue, float64(d.Memory.Records), d.Name, "memory")
		g.add(mQueueBytes, float64(d.Queue.Bytes), d.Name, "spool")
		g.add(mQueueBytes, float64(d.Memory.Bytes), d.Name, "memory")
		oldest := 0.0
		if !d.Oldest.IsZero() {
			oldest = float64(d.Oldest.UnixMilli()) / 1000
		}
		g.add(mOldest, oldest, d.Name)
		if !d.LastDelivered.IsZero() {
			g.add(mLastAck, float64(d.LastDelivered.UnixMilli())/1000, d.Name)
		}
		g.add(mBreaker, map[string]float64{control.BreakerOpen: 1, control.BreakerHalfOpen: 0.5}[d.Breaker.State], d.Name)
		g.add(mFailures, float64(d.Breaker.Failures), d.Name)
		l := d.Ledger
		g.terms("destination", d.Name, map[string]uint64{"appended": l.Appended, "delivered": l.Delivered, "waiting": l.Waiting,
			"dead_lettered": l.DeadLettered, "dropped": l.Dropped, "replayed": l.Replayed})
		g.histogram(d.Name, d.Latency)
	}
}

func (g *gatherer) histogram(destination string, h control.Histogram) {
	buckets := make(map[float64]uint64, len(h.Bounds))
	for i := range min(len(h.Bounds), len(h.Counts)) {
		buckets[h.Bounds[i]] = h.Counts[i]
	}
	m, err := prometheus.NewConstHistogram(mLatency.desc(), h.Count, h.Sum, buckets, strings.ToValidUTF8(destination, "?"))
	if err != nil {
		m = prometheus.NewInvalidMetric(mLatency.desc(), err)
	}
	g.used[mLatency.name] = true
	g.out <- m
}

func (g *gatherer) terms(scope, name string, terms map[string]uint64) {
	for _, term := range slices.Sorted(maps.Keys(terms)) {
		g.add(mLedger, float64(terms[term]), scope, name, term)
	}
}

// maxReasons bounds the label reason: a module chooses the reasons of its
// rejections. The rest is counted as other.
const maxReasons = 50

func (g *gatherer) failed(s control.Status) {
	for _, x := range s.Sources {
		g.reasons("source", x.Name, x.Failed)
	}
	g.reasons("dead_letters", "", s.DeadLetters.Total)
	for _, p := range s.Pipelines {
		g.reasons("pipeline", p.Name, map[string]uint64{"dropped": p.Ledger.Dropped})
	}
	for _, d := range s.Destinations {
		g.reasons("destination", d.Name, map[string]uint64{"dropped": d.Ledger.Dropped})
	}
}

func (g *gatherer) reasons(stage, name string, counts map[string]uint64) {
	reasons := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	sum := map[string]uint64{}
	for i, r := range reasons {
		label := strings.ToValidUTF8(r[:min(64, len(r))], "?")
		if i >= maxReasons {
			label = "other"
		}
		sum[label] += counts[r]
	}
	for _, r := range slices.Sorted(maps.Keys(sum)) {
		g.add(mFailed, float64(sum[r]), stage, name, r)
	}
}

// metricName is the name of a protocol's own metric, as sources.Status has it:
// perhaps with one label.
var metricName = regexp.MustCompile(`^([a-z][a-z0-9_]*)(?:\{([a-z][a-z0-9_]*)="([^"\\]*)"\})?$`)

// counters adds the protocols' own metrics. One whose name is taken or is none
// is left out: it would spoil the whole scrape.
func (g *gatherer) counters(sources []control.SourceStatus) {
	taken := maps.Clone(g.used)
	for _, x := range sources {
		for _, key := range slices.Sorted(maps.Keys(x.Counters)) {
			part := metricName.FindStringSubmatch(key)
			m := metric{"", "See the documentation of the protocol.", gauge, []string{"source", "protocol"}}
			if part == nil || taken[part[1]] || slices.Contains(m.labels, part[2]) {
				continue
			}
			m.name = part[1]
			if strings.HasSuffix(m.name, "_total") {
				m.kind = counter
			}
			labels := []string{x.Name, x.Protocol}
			if part[2] != "" {
				m.labels, labels = append(m.labels, part[2]), append(labels, part[3])
			}
			g.add(m, x.Counters[key], labels...)
		}
	}
}
