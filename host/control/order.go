package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"
)

// callerKey is under which the context of a request has the name of who asks.
type callerKey struct{}

// Caller names who sent the request that ctx belongs to: the user at the other
// end of the socket as the kernel knows it, or the address of a peer that has none;
// "" is not known, or no request.
func Caller(ctx context.Context) string {
	by, _ := ctx.Value(callerKey{}).(string)
	return by
}

// identify makes the caller of a request known to its context.
func identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if Caller(r.Context()) == "" && r.RemoteAddr != "@" { // the other end of a unix socket has no name
			r = r.WithContext(context.WithValue(r.Context(), callerKey{}, r.RemoteAddr))
		}
		next.ServeHTTP(w, r)
	})
}

// order is one request that changes something, on its way to the log.
type order struct {
	what string
	in   any // what was asked for, when the path does not say it
}

// maxAsked bounds what the log says of one request, in bytes.
const maxAsked = 500

// orders makes handlers of requests that change something. Each is one line in the
// log when it has ended: who asked for what, when, and how it ended.
func orders(log *slog.Logger) func(what string, f func(*http.Request, *order) (any, error)) http.HandlerFunc {
	return func(what string, f func(*http.Request, *order) (any, error)) http.HandlerFunc {
		return answer(func(r *http.Request) (any, error) {
			o, begin := order{what: what}, time.Now()
			result, err := f(r, &o)
			o.log(log, r, begin, err)
			return result, err
		})
	}
}

func (o *order) log(log *slog.Logger, r *http.Request, begin time.Time, err error) {
	attrs := []any{"order", o.what, "by", Caller(r.Context()), "begun", begin.UTC()}
	if name := r.PathValue("name"); name != "" {
		attrs = append(attrs, "name", name)
	}
	if o.in != nil {
		asked, _ := json.Marshal(o.in) // it was decoded from JSON
		attrs = append(attrs, "asked", string(asked[:min(len(asked), maxAsked)]))
	}
	if err != nil {
		log.Warn("order failed", append(attrs, "error", err)...)
		return
	}
	log.Info("order carried out", attrs...)
}

// call decodes the body into the argument of f; o, when not nil, takes note of it.
// A key that this version does not know is an error: doing less than was asked
// would be worse.
func call[A, R any](r *http.Request, o *order, f func(context.Context, A) (R, error)) (out R, err error) {
	var in A
	d := json.NewDecoder(io.LimitReader(r.Body, 1<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return out, Errorf(Invalid, "decode request: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return out, Errorf(Invalid, "decode request: something follows it")
	}
	if o != nil {
		o.in = in
	}
	return f(r.Context(), in)
}
