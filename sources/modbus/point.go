package modbus

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"strconv"
	"time"

	"github.com/edgehost/edgehost/sources"
)

// Point is one value that a source reads: what an entry of registers expands to.
type Point struct {
	Address  string       // of its records: unit and register, 1:40001, 1:holding:100, 1:40001.3 for a bit
	Slave    uint8        // unit
	Type     RegisterType // table
	Offset   uint16       // of its first register (or bit) on the wire, from 0
	Width    int          // registers, or bits
	Number   int          // of its first register, as configured (40001)
	Interval time.Duration

	DataType    DataType
	ByteOrder   ByteOrder
	Bit         int     // data type bit
	Length      int     // data type string: characters
	Scale       float64 // engineering value = register value * Scale + ValueOffset
	ValueOffset float64
	ScaleFactor int
	Name        string // "" when it has none
	Unit        string // engineering unit, "" when it has none
	Tags        map[string]string

	Report    Report
	Deadband  float64
	Heartbeat time.Duration
}

// Expand returns the values that a source of this configuration reads, in the
// order of the configuration. The error joins everything that Validate finds.
func Expand(c Config) ([]Point, error) {
	if err := invalid(c.Validate()); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	var points []Point
	for i := range c.Registers {
		more, _ := c.expand(&c.Registers[i])
		points = append(points, more...)
	}
	return points, nil
}

func invalid(errs []sources.FieldError) error {
	all := make([]error, len(errs))
	for i := range errs {
		all[i] = errs[i]
	}
	return errors.Join(all...)
}

// expand returns the points of r, or what is wrong with it, with paths relative
// to the entry. c has its defaults.
func (c Config) expand(r *Register) ([]Point, []sources.FieldError) {
	var errs fieldErrors
	p := c.point(r, &errs)
	if len(errs) > 0 {
		return nil, errs
	}
	first, err := r.Address.resolve(c.Addressing, r.RegisterType)
	if err != nil {
		errs.add("address", err.Error())
		return nil, errs
	}
	n := r.values(&p, &errs)
	last := first.at(n*p.Width - 1)
	if len(errs) == 0 {
		checkEnd(first, last, r.RegisterType, &errs)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	points := make([]Point, n)
	for i := range points {
		points[i] = p
		points[i].place(first.at(i*p.Width), i, n)
	}
	return points, nil
}

// place puts the i-th of n values at where.
func (p *Point) place(where place, i, n int) {
	p.Offset, p.Number = uint16(where.offset), where.number
	p.Address = strconv.Itoa(int(p.Slave)) + ":" + where.label(p.Type)
	switch p.DataType {
	case TypeBit:
		p.Address += "." + strconv.Itoa(p.Bit)
	case TypeInt8, TypeUint8:
		p.Address += ".low"
	case TypeInt8High, TypeUint8High:
		p.Address += ".high"
	}
	if p.Name != "" && n > 1 {
		p.Name = fmt.Sprintf("%s[%d]", p.Name, i)
	}
}

func checkEnd(first, last place, t RegisterType, errs *fieldErrors) {
	if last.offset >= tableSize {
		errs.add("count", fmt.Sprintf("reaches beyond the last register of the table: %d registers from here on are the most", tableSize-first.offset))
	} else if first.digits == 5 && last.number > t.digit()*10_000+9_999 {
		errs.add("count", fmt.Sprintf("reaches %d, which five digits of Modicon notation cannot say; write the address with six digits", last.number))
	}
}

// point fills in everything but place and number of values.
func (c Config) point(r *Register, errs *fieldErrors) Point {
	p := Point{Type: r.RegisterType, DataType: r.DataType, Bit: r.Bit, Length: r.Length, Name: r.Name, Unit: r.Unit,
		Tags: maps.Clone(r.Tags), ValueOffset: r.Offset, Scale: *or(r.Scale, 1), ScaleFactor: *or(r.ScaleFactor, 1),
		Interval: c.interval(), Report: c.Report, Deadband: *or(r.Deadband, c.Deadband),
		Heartbeat: seconds(*or(r.HeartbeatSeconds, c.HeartbeatSeconds))}
	oneOf(errs, "register_type", r.RegisterType, registerTypes)
	if p.DataType == "" {
		p.DataType = TypeUint16
		if p.Type.bits() {
			p.DataType = TypeBool
		}
	}
	oneOf(errs, "data_type", p.DataType, DataTypes)
	unit := *or(r.SlaveID, *c.SlaveID)
	if r.SlaveID != nil {
		errs.between("slave_id", unit, 0, 255)
	}
	p.Slave = uint8(unit)
	order := c.ByteOrder
	if r.ByteOrder != "" {
		order = r.ByteOrder
	}
	if o, err := parseOrder(order); err != nil && r.ByteOrder != "" {
		errs.add("byte_order", err.Error())
	} else {
		p.ByteOrder = o
	}
	if r.Report != "" {
		oneOf(errs, "report", r.Report, []Report{Always, OnChange})
		p.Report = r.Report
	}
	if r.PollIntervalMS != 0 {
		errs.between("poll_interval_ms", r.PollIntervalMS, 1, maxSeconds*1000)
		p.Interval = time.Duration(r.PollIntervalMS) * time.Millisecond
	}
	errs.deadband("deadband", *or(r.Deadband, 0))
	errs.duration("heartbeat_seconds", *or(r.HeartbeatSeconds, 0))
	*errs = append(*errs, sources.Prefix("tags", sources.ValidateTags(r.Tags))...)
	p.checkType(r, c.MaxRegistersPerRequest, errs)
	return p
}

// checkType looks at what depends on the data type, and sets the width.
func (p *Point) checkType(r *Register, most int, errs *fieldErrors) {
	if p.Type.bits() && p.DataType != TypeBool {
		errs.add("data_type", fmt.Sprintf("%s cannot be read from a %s, which holds single bits; use bool", p.DataType, p.Type))
	}
	if r.Bit != 0 && p.DataType != TypeBit {
		errs.add("bit", "is for data_type bit only")
	}
	errs.between("bit", r.Bit, 0, 15)
	p.Width = p.DataType.width()
	if p.DataType == TypeString {
		p.stringWidth(r, most, errs)
	} else if r.Length != 0 {
		errs.add("length", "is for data_type string only")
	}
	if p.Width > most && !p.Type.bits() {
		errs.add("data_type", fmt.Sprintf("%s needs %d registers in one request, more than max_registers_per_request (%d)", p.DataType, p.Width, most))
	}
	if !p.DataType.numeric() && (r.Scale != nil || r.Offset != 0) {
		errs.add("scale", fmt.Sprintf("and offset are for numbers, not for %s", p.DataType))
	}
	if p.Scale == 0 || math.IsNaN(p.Scale) || math.IsInf(p.Scale, 0) || math.IsNaN(r.Offset) || math.IsInf(r.Offset, 0) {
		errs.add("scale", fmt.Sprintf("%v (offset %v) makes no number of a value; leave it out for 1", p.Scale, r.Offset))
	}
	if p.ScaleFactor == 0 {
		errs.add("scale_factor", "0 would make every scaled_value 0; leave it out for 1")
	}
}

// stringWidth takes the length of a string from length, or from count when
// count alone is given: then all of it is one string.
func (p *Point) stringWidth(r *Register, most int, errs *fieldErrors) {
	if p.Length == 0 && r.Values == 0 && r.Count > 0 {
		p.Length = 2 * r.Count
	}
	if p.Length < 1 || p.Length > 2*most {
		errs.add("length", fmt.Sprintf("%d is not between 1 and %d: a string of this many characters, two in a register", p.Length, 2*most))
		p.Length = 1
	}
	p.Width = (p.Length + 1) / 2
}

// values returns how many values r holds.
func (r *Register) values(p *Point, errs *fieldErrors) int {
	switch {
	case r.Count != 0 && r.Values != 0:
		errs.add("values", "stands beside count: keep one of them")
	case r.Count < 0 || r.Count > tableSize:
		errs.add("count", fmt.Sprintf("%d is not between 1 and %d", r.Count, tableSize))
	case r.Values < 0 || r.Values > tableSize:
		errs.add("values", fmt.Sprintf("%d is not between 1 and %d", r.Values, tableSize))
	case r.Values > 0:
		return r.Values
	case r.Count%p.Width != 0:
		errs.add("count", fmt.Sprintf("%d registers do not divide into values of %s, which take %d each; write a multiple of %d, or values: N",
			r.Count, p.DataType, p.Width, p.Width))
	case r.Count > 0:
		return r.Count / p.Width
	}
	return 1
}
