// Package zerobustest is an emulator of the Zerobus service: its gRPC endpoint
// and its token endpoint, over TLS, with a certificate authority that it makes at
// start. It is as strict as the service is known to be and acknowledges rows only
// when they are fsynced to DIR/<catalog.schema.table>.ndjson.
//
//	SDK ──token──> POST /oidc/v1/token        HTTPS, also /_emulator/…
//	SDK ──gRPC───> Zerobus/EphemeralStream ──rows──> NDJSON ──fsync──> ack
//
// It decodes the frames by hand and registers no messages, so that it lives in
// one process with the vendor's SDK.
package zerobustest

import (
	"log/slog"
	"time"
)

// Config says how to start an emulator. The zero value works: ports that the
// system picks on 127.0.0.1, a temporary directory is not made, Dir is required.
type Config struct {
	Listen      string // of the gRPC endpoint; "" is 127.0.0.1:0
	TokenListen string // of the token and admin endpoint; "" is 127.0.0.1:0
	Dir         string // where the tables are written; made when missing
	// ClientID and ClientSecret are the only credentials that get a token; both
	// empty accept any.
	ClientID, ClientSecret string
	// Hosts are further names in the server certificate (127.0.0.1, ::1 and
	// localhost always are), for clients that come through a proxy.
	Hosts []string
	// TokenLifetime of an issued token; 0 is one hour.
	TokenLifetime time.Duration
	// KeyColumn is the column by which duplicates are counted; "" is record_id.
	KeyColumn string
	Log       *slog.Logger // nil logs nothing
}
