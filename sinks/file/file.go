// Package file is the sink that writes NDJSON: one file a table, one JSON object
// a row, fsynced before the ack. It is for tests, for a site without a cloud and
// for looking at what would be sent.
//
//	Send ──rows──> DIR/<catalog.schema.table>.ndjson ──fsync──> Acks
//
// A crash may leave a partial last line; Open cuts it. Rows that were written but
// not acknowledged before a crash are written again, with the same record_id.
package file

// Config is the file section of the configuration.
type Config struct {
	// Dir is where the files are. It is made when missing.
	Dir string `yaml:"dir"`
	// MaxSizeMB bounds the file of each table, in 1,000,000 bytes; a full file
	// holds the destination until a person makes room. 0 is 1024.
	MaxSizeMB int `yaml:"max_size_mb"`
}
