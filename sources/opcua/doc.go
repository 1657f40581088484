// Package opcua reads OPC UA servers. It never says "connected" while it
// delivers nothing, and it loses nothing that the server still holds.
//
// Types, encoding and algorithms are gopcua's; channel, session and subscription
// engine are ours:
//
//	supervisor ─ Run ─ channel ─ session ─ resume ─┐
//	                                               v
//	server ── publish ×N ──> order by sequence ──> emit ──> pipeline
//	   ^                        │ hole: Republish              │
//	   └── acknowledge <────────┴──── durable <── done(nil) <──┘
//
// A notification is acknowledged only after done(nil), so the server keeps it
// until then. The resume point in each batch (subscription ids and sequence
// numbers) lets the next process take the subscription over.
package opcua
