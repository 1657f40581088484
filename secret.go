package main

import "log/slog"

// Secret is a configured secret. Whatever prints, logs or encodes it shows that
// there is one and not what it is; Reveal is the only way to its text.
type Secret string

const redacted = "[secret]"

// Reveal returns the secret itself, for the one who must present it.
func (s Secret) Reveal() string { return string(s) }

// String implements fmt.Stringer.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString implements fmt.GoStringer, for %#v.
func (s Secret) GoString() string { return `"` + s.String() + `"` }

// MarshalText implements encoding.TextMarshaler: JSON and YAML follow it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
