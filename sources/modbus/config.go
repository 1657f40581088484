package modbus

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// Config is the block modbus of a source. The zero value of a field means its
// default; pointers are used where zero is a setting of its own.
type Config struct {
	SlaveID                *int              `yaml:"slave_id"`                  // unit, 0 to 255; default 1
	PollIntervalSeconds    float64           `yaml:"poll_interval_seconds"`     // fractions allowed; default 1
	PollIntervalMS         int               `yaml:"poll_interval_ms"`          // in place of poll_interval_seconds
	TimeoutMS              int               `yaml:"timeout_ms"`                // from request to reply, on serial lines with the time on the wire; default 1000
	Retries                *int              `yaml:"retries"`                   // after a request that failed; default 1
	PauseBetweenRequestsMS int               `yaml:"pause_between_requests_ms"` // default 0
	PauseAfterConnectMS    int               `yaml:"pause_after_connect_ms"`    // default 0
	Serial                 SerialConfig      `yaml:"serial"`                    // modbus+rtu only
	TLS                    sources.TLSConfig `yaml:"tls"`                       // modbus+tls only
	Addressing             Addressing        `yaml:"addressing"`                // default auto
	ByteOrder              string            `yaml:"byte_order"`                // default ABCD
	MaxGap                 *int              `yaml:"max_gap"`                   // registers read through to save a request; default 8, 0 for none; 16 bits count as one
	MaxRegistersPerRequest int               `yaml:"max_registers_per_request"` // default and limit 125; 16 bits count as one
	UnitBreaker            BreakerConfig     `yaml:"unit_breaker"`
	Report                 Report            `yaml:"report"`            // default always
	Deadband               float64           `yaml:"deadband"`          // with on_change: in engineering units; default 0
	HeartbeatSeconds       float64           `yaml:"heartbeat_seconds"` // with on_change: report anew after this time; default 0, never
	Registers              []Register        `yaml:"registers"`
}

// SerialConfig is the serial line of modbus+rtu.
type SerialConfig struct {
	BaudRate int    `yaml:"baud_rate"` // default 19200
	DataBits int    `yaml:"data_bits"` // 8, which RTU frames need
	Parity   string `yaml:"parity"`    // N, E or O; default N
	StopBits int    `yaml:"stop_bits"` // 1 or 2; default 1
}

// BreakerConfig says when a unit that does not answer is left alone, so that
// its time-outs cost the other units of the connection nothing.
type BreakerConfig struct {
	Failures     int     `yaml:"failures"`      // in a row; default 3
	RetrySeconds float64 `yaml:"retry_seconds"` // then one request every so often; default 10
}

// Report says which values become records.
type Report string

// Always makes a record of every value read; OnChange of those that differ
// from the last one reported by more than the dead-band, and of every change of
// quality.
const (
	Always   Report = "always"
	OnChange Report = "on_change"
)

// Register is one entry of registers: count registers (or values values) that
// follow each other, read as one data type.
type Register struct {
	Address          Address           `yaml:"address"`
	Count            int               `yaml:"count"`         // registers (bits for coil and discrete), a multiple of the type's width; default one value
	Values           int               `yaml:"values"`        // in place of count
	RegisterType     RegisterType      `yaml:"register_type"` // holding, input, coil or discrete
	DataType         DataType          `yaml:"data_type"`     // default uint16; bool for coil and discrete
	ByteOrder        string            `yaml:"byte_order"`    // default: the source's
	SlaveID          *int              `yaml:"slave_id"`      // default: the source's
	Name             string            `yaml:"name"`          // sensor_name; several values get name[0], name[1], …
	Scale            *float64          `yaml:"scale"`         // engineering value = register value * scale + offset; default 1
	Offset           float64           `yaml:"offset"`        // default 0
	ScaleFactor      *int              `yaml:"scale_factor"`  // scaled_value = round(engineering value * scale_factor); default 1
	Unit             string            `yaml:"unit"`          // engineering unit
	Bit              int               `yaml:"bit"`           // with data_type bit: 0 (least significant) to 15
	Length           int               `yaml:"length"`        // with data_type string: characters
	PollIntervalMS   int               `yaml:"poll_interval_ms"`
	Report           Report            `yaml:"report"`
	Deadband         *float64          `yaml:"deadband"`
	HeartbeatSeconds *float64          `yaml:"heartbeat_seconds"`
	Tags             map[string]string `yaml:"tags"` // win over the source's
}

// The limits of the Modbus Application Protocol 1.1b3, sections 6.1 to 6.4, and
// ours.
const (
	maxRegisters = 125
	bitsPerWord  = 16 // 125 words = 2,000 bits, the limit of both bit tables
	minInterval  = time.Millisecond
	maxSeconds   = 86400
	maxPoints    = 200_000 // of a source
)

// withDefaults returns c with every field set.
func (c Config) withDefaults() Config {
	c.SlaveID = or(c.SlaveID, 1)
	c.Retries = or(c.Retries, 1)
	c.MaxGap = or(c.MaxGap, 8)
	setDefault(&c.TimeoutMS, 1000)
	setDefault(&c.Addressing, Auto)
	setDefault(&c.ByteOrder, string(ABCD))
	setDefault(&c.MaxRegistersPerRequest, maxRegisters)
	setDefault(&c.Report, Always)
	setDefault(&c.UnitBreaker.Failures, 3)
	setDefault(&c.UnitBreaker.RetrySeconds, 10)
	setDefault(&c.Serial.BaudRate, 19200)
	setDefault(&c.Serial.DataBits, 8)
	setDefault(&c.Serial.Parity, "N")
	setDefault(&c.Serial.StopBits, 1)
	c.Serial.Parity = strings.ToUpper(c.Serial.Parity)
	if c.PollIntervalMS == 0 && c.PollIntervalSeconds == 0 {
		c.PollIntervalSeconds = 1
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func or[T any](field *T, value T) *T {
	if field == nil {
		return &value
	}
	return field
}

func (c Config) interval() time.Duration {
	if c.PollIntervalMS != 0 {
		return time.Duration(c.PollIntervalMS) * time.Millisecond
	}
	return seconds(c.PollIntervalSeconds)
}

func seconds(s float64) time.Duration {
	return time.Duration(math.Round(s * float64(time.Second)))
}

// Validate returns what is wrong, with paths relative to the modbus block. A
// Config without errors can be planned, expanded and run.
func (c Config) Validate() []sources.FieldError {
	d := c.withDefaults()
	errs := d.validateSource()
	errs = append(errs, sources.Prefix("serial", d.Serial.validate())...)
	errs = append(errs, sources.Prefix("tls", c.TLS.Validate())...)
	if len(d.Registers) == 0 {
		errs = append(errs, sources.FieldError{Path: "registers", Msg: "is empty: name at least one register to read"})
	}
	total := 0
	all := make([][]Point, len(d.Registers))
	for i := range d.Registers {
		points, more := d.expand(&d.Registers[i])
		all[i] = points
		errs = append(errs, sources.Prefix(fmt.Sprintf("registers[%d]", i), more)...)
		if total += len(points); total > maxPoints {
			return append(errs, sources.FieldError{Path: "registers",
				Msg: fmt.Sprintf("holds more than %d values: divide them among several sources", maxPoints)})
		}
	}
	if len(errs) > 0 {
		return errs
	}
	taken := claims{}
	for i, points := range all {
		errs = append(errs, sources.Prefix(fmt.Sprintf("registers[%d]", i), taken.claim(points, i))...)
	}
	return errs
}

// claims is which entry of registers reads a value, by address and name.
type claims map[[2]string]int

// claim enters the points of an entry. Two values that nothing tells apart would
// be one point to everybody after the source.
func (c claims) claim(points []Point, entry int) []sources.FieldError {
	for i := range points {
		p := &points[i]
		key := [2]string{p.Address, p.Name}
		if other, taken := c[key]; taken {
			return []sources.FieldError{{Path: "address",
				Msg: fmt.Sprintf("%s is read by registers[%d] already: remove one of them, or give them different names", p.Address, other)}}
		}
		c[key] = entry
	}
	return nil
}

func (c Config) validateSource() []sources.FieldError {
	var errs fieldErrors
	errs.between("slave_id", *c.SlaveID, 0, 255)
	if c.PollIntervalMS != 0 && c.PollIntervalSeconds != 0 {
		errs.add("poll_interval_ms", "stands beside poll_interval_seconds: keep one of them")
	}
	if c.PollIntervalMS < 0 {
		errs.add("poll_interval_ms", fmt.Sprintf("%d is below 1 millisecond", c.PollIntervalMS))
	}
	if d := c.interval(); c.PollIntervalMS >= 0 && (d < minInterval || c.PollIntervalSeconds > maxSeconds) {
		errs.add("poll_interval_seconds", fmt.Sprintf("%v is not between 0.001 and %d seconds", c.PollIntervalSeconds, maxSeconds))
	}
	errs.between("timeout_ms", c.TimeoutMS, 1, 60_000)
	errs.between("retries", *c.Retries, 0, 10)
	errs.between("pause_between_requests_ms", c.PauseBetweenRequestsMS, 0, 60_000)
	errs.between("pause_after_connect_ms", c.PauseAfterConnectMS, 0, 60_000)
	oneOf(&errs, "addressing", c.Addressing, addressings)
	if _, err := parseOrder(c.ByteOrder); err != nil {
		errs.add("byte_order", err.Error())
	}
	errs.between("max_gap", *c.MaxGap, 0, maxRegisters)
	errs.between("max_registers_per_request", c.MaxRegistersPerRequest, 1, maxRegisters)
	errs.between("unit_breaker.failures", c.UnitBreaker.Failures, 1, 1000)
	errs.duration("unit_breaker.retry_seconds", c.UnitBreaker.RetrySeconds)
	oneOf(&errs, "report", c.Report, []Report{Always, OnChange})
	errs.duration("heartbeat_seconds", c.HeartbeatSeconds)
	errs.deadband("deadband", c.Deadband)
	return errs
}

func (c SerialConfig) validate() []sources.FieldError {
	var errs fieldErrors
	errs.between("baud_rate", c.BaudRate, 50, 4_000_000)
	if c.DataBits != 8 {
		errs.add("data_bits", fmt.Sprintf("%d cannot carry RTU frames, which need 8 (Modbus ASCII, which uses 7, is not supported: set the device to RTU)", c.DataBits))
	}
	errs.between("stop_bits", c.StopBits, 1, 2)
	oneOf(&errs, "parity", c.Parity, []string{"N", "E", "O"})
	return errs
}

// fieldErrors gathers errors; its methods name a key and the limits it breaks.
type fieldErrors []sources.FieldError

func (e *fieldErrors) add(path, msg string) {
	*e = append(*e, sources.FieldError{Path: path, Msg: msg})
}

func (e *fieldErrors) between(path string, v, low, high int) {
	if v < low || v > high {
		e.add(path, fmt.Sprintf("%d is not between %d and %d", v, low, high))
	}
}

func (e *fieldErrors) duration(path string, s float64) {
	if !(s >= 0 && s <= maxSeconds) {
		e.add(path, fmt.Sprintf("%v is not between 0 and %d seconds", s, maxSeconds))
	}
}

func (e *fieldErrors) deadband(path string, v float64) {
	if !(v >= 0) || math.IsInf(v, 0) {
		e.add(path, fmt.Sprintf("%v is not a number from 0 on", v))
	}
}

// oneOf adds an error unless v is one of known.
func oneOf[T ~string](e *fieldErrors, path string, v T, known []T) {
	if slices.Contains(known, v) {
		return
	}
	words := make([]string, len(known))
	for i, k := range known {
		words[i] = string(k)
	}
	e.add(path, fmt.Sprintf("%q is unknown; use one of %s", string(v), strings.Join(words, ", ")))
}
