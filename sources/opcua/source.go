package opcua

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// The metrics of this protocol, as they appear on /metrics.
const (
	metricItems          = "opcua_items"
	metricItemsBad       = "opcua_items_bad"
	metricRepublished    = "opcua_republished_total"
	metricGaps           = "opcua_gaps_total"
	metricOverflow       = "opcua_overflow_total"
	metricPublishLatency = "opcua_publish_latency_seconds"
	metricResumes        = "opcua_session_resumes_total"
	metricBackfilled     = "opcua_backfilled_total"
	metricOwnCertDays    = "opcua_own_certificate_days"
	metricServerCertDays = "opcua_server_certificate_days"
	metricCACertDays     = "opcua_ca_certificate_days" // of the issuer that expires first
)

// Metrics and Reasons are what a source counts from 0 on.
var (
	Metrics = []string{metricItems, metricItemsBad, metricRepublished, metricGaps, metricOverflow, metricResumes, metricBackfilled}
	Reasons = []string{reasonDecode, reasonRead}
)

// The reasons under which this protocol counts failures: answers that could not
// be decoded, and items whose poll failed.
const (
	reasonDecode = "decode_error"
	reasonRead   = "read_error"
)

// protocol is the name in configuration and metrics.
const protocol = "opcua"

// Deps are what a source needs of the house. Logger and Status are never nil.
type Deps struct {
	// Logger names the source in each of its lines already.
	Logger *slog.Logger
	Status *sources.Status
	// Resume returns the resume point of the last commit, nil when there is
	// none. It is called once in the life of a Source, when Run starts first.
	// nil means that the source never resumes.
	Resume func() []byte
	// Dir is the folder of certificates that the configuration does not name.
	Dir string
}

// Source reads one OPC UA server. Make it with New.
type Source struct {
	name     string
	endpoint string
	tags     map[string]string
	cfg      Config
	cfgHash  string
	deps     Deps
	log      *slog.Logger
	status   *sources.Status
	connect  func(ctx context.Context) (*link, error)
	flights  *flights

	// What lives on between two calls of Run, which never overlap.
	plan    *plan
	subs    []*subscription
	types   *typeSystem
	ns      []string
	started time.Time // of the server
	asked   bool      // deps.Resume was called
	most    int       // operations in one call, after one that took too long; 0: no bound
}

var _ sources.Peered = (*Source)(nil)

// New makes the source called name for the server at endpoint. tags become
// attributes of every record. The error lists every mistake of cfg.
func New(name, endpoint string, tags map[string]string, cfg Config, deps Deps) (*Source, error) {
	var errs []error
	if err := ValidateEndpoint(endpoint); err != nil {
		errs = append(errs, fmt.Errorf("endpoint: %w", err))
	}
	for _, e := range sources.Prefix("opcua", cfg.Validate()) {
		errs = append(errs, e)
	}
	for _, e := range sources.Prefix("tags", sources.ValidateTags(tags)) {
		errs = append(errs, e)
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("configure source %s: %w", name, errors.Join(errs...))
	}
	cfg = cfg.withDefaults()
	u, err := parseEndpoint(endpoint)
	if err != nil {
		return nil, fmt.Errorf("configure source %s: %w", name, err)
	}
	d := &dialer{name: name, cfg: cfg, url: u, dir: deps.Dir, log: deps.Logger, status: deps.Status}
	return &Source{name: name, endpoint: endpoint, tags: tags, cfg: cfg, cfgHash: cfg.hash(), deps: deps, log: deps.Logger, status: deps.Status,
		connect: d.connect, flights: newFlights()}, nil
}

// Peers implements sources.Peered.
func (s *Source) Peers() []string { return Peers(s.endpoint) }

// Peers returns the address, host:port, that a source of endpoint connects to;
// none when the endpoint is not valid.
func Peers(endpoint string) []string {
	u, err := parseEndpoint(endpoint)
	if err != nil {
		return nil
	}
	return []string{u.Host}
}

// Run connects, subscribes and emits until ctx ends or the connection is lost.
// See sources.Source.
func (s *Source) Run(ctx context.Context, emit sources.Emit) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("fault in the opcua source: %v", p)
		}
		if ctx.Err() != nil {
			err = ctx.Err()
			return
		}
		if errors.Is(err, errStalled) {
			s.status.Report(s.log, sources.Stalled, err.Error())
		}
		err = marked(err)
	}()
	l, err := s.connect(ctx)
	if err != nil {
		return err
	}
	keep := true
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.requestTimeout())
		defer cancel()
		l.close(closeCtx, keep)
	}()
	sess, err := openSession(ctx, l, s.cfg, s.most, s.log)
	if err != nil {
		return err
	}
	e := newEngine(s, sess, emit)
	err = e.run(ctx, l)
	e.countBytes()
	if slow := new(slowError); errors.As(err, &slow) && slow.operations > leastChunk {
		s.most = max(slow.operations/2, leastChunk)
		s.log.Warn("server did not answer a large call within request_timeout_seconds: the next connection asks for less at once", "operations", slow.operations, "at_most", s.most)
	}
	// A clean stop may leave the subscription to the next process; a lost
	// connection always leaves it to the next connection.
	keep = ctx.Err() == nil || *s.cfg.ResumeOnRestart
	if !keep {
		s.subs = nil
	}
	return err
}

// summary lists at most three texts and how many more there are.
func summary(list []string) string {
	const show = 3
	if len(list) <= show {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:show], ", "), len(list)-show)
}
