package opcua

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// These bound the resume point, which may have 64 KiB: with more failed items or
// subscriptions the next process starts afresh.
const (
	maxFailedInResume = 3000
	maxSubsInResume   = 500
)

// resumePoint is what the next process needs to take our subscriptions over.
type resumePoint struct {
	Version  int         `json:"v"`
	Endpoint string      `json:"endpoint"`
	Config   string      `json:"config"`  // hash of what shapes the items
	Items    uint64      `json:"items"`   // hash of the items and their handles
	Started  int64       `json:"started"` // when the server started, Unix nanoseconds
	Subs     []resumeSub `json:"subs"`
	Failed   []uint32    `json:"failed,omitempty"` // handles that the server refused
	At       int64       `json:"at"`               // when it was written, Unix microseconds
	// Truncated says that there were subscriptions, too many to name.
	Truncated bool `json:"truncated,omitempty"`
}

// resumeSub is one subscription: everything up to Seq is durable once this
// point is.
type resumeSub struct {
	ID  uint32 `json:"id"`
	Seq uint32 `json:"seq"`
}

// advance notes that seq of subscription id goes with the current batch.
func (p *resumePoint) advance(id, seq uint32) {
	// The slice is shared with the head that the engine sent: copy first.
	p.Subs = slices.Clone(p.Subs)
	for i := range p.Subs {
		if p.Subs[i].ID == id {
			p.Subs[i].Seq = seq
		}
	}
}

// encode returns the bytes of p. A point that would be too large names no
// subscriptions, so that it does not leave an older one in force.
func (p *resumePoint) encode() []byte {
	p.At = time.Now().UnixMicro()
	out := *p
	if len(p.Failed) > maxFailedInResume || len(p.Subs) > maxSubsInResume {
		out.Subs, out.Failed, out.Truncated = nil, nil, true
	}
	b, err := json.Marshal(out)
	if err != nil {
		return nil
	}
	return b
}

// decodeResume reads a resume point of this source. ok is false, and the reason
// logged, when it cannot be used.
func decodeResume(b []byte, endpoint string, started time.Time, log *slog.Logger) (p resumePoint, ok bool) {
	if len(b) == 0 {
		return p, false
	}
	reason := ""
	if err := json.Unmarshal(b, &p); err != nil {
		reason = err.Error()
	}
	switch {
	case reason != "":
	case len(p.Subs) == 0 && !p.Truncated:
		return resumePoint{}, false // everything was polled
	case p.Version != 1:
		reason = "written by another version"
	case p.Endpoint != endpoint:
		reason = "of another endpoint"
	case started.IsZero() || p.Started != started.UnixNano():
		// Subscription ids start again with the server: the same number may
		// now be somebody else's.
		reason = "server was restarted since"
	case p.Truncated || len(p.Subs) > maxSubsInResume:
		reason = "too many items that the server refuses"
	}
	if reason != "" {
		log.Warn("resume point not used; values between the last stop and now may be missing", "reason", reason)
	}
	return p, reason == ""
}

// hash tells whether two configurations make the same monitored items. Secrets
// and what has no influence are left out.
func (c Config) hash() string {
	b, err := json.Marshal(struct {
		Interval, Keepalive, Lifetime, Max int
		Mode                               string
		User                               string
		Defaults                           ItemConfig
		Nodes                              []NodeConfig
		Events                             []EventConfig
	}{c.PublishingIntervalMS, c.KeepaliveCount, c.LifetimeSeconds, c.MaxNotificationsPerPublish, c.Mode, c.Username, c.Defaults, c.Nodes, c.Events})
	if err != nil {
		b = fmt.Append(nil, c.Nodes)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
