package zerobus

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/edgehost/edgehost/abi"
)

// Schema is the columns of a table, as far as edgehost writes them. Columns of
// the table that a Schema leaves out become NULL.
type Schema struct {
	Table   string // catalog.schema.table
	Columns []Column
}

// Column is one column of a Schema.
type Column struct {
	Name string
	// Type is a scalar type of the table as it is written in SQL: TINYINT,
	// SMALLINT, INT, BIGINT, FLOAT, DOUBLE, STRING, VARCHAR, BOOLEAN, BINARY, DATE
	// (days), TIMESTAMP and TIMESTAMP_NTZ (microseconds), VARIANT (JSON text),
	// DECIMAL (decimal text).
	Type Type
	// Number is the field number of the row message, 1 and up.
	Number int32
	// Nullable false is a NOT NULL column: a record without it is refused.
	Nullable bool
	// From is what fills the column when it is not Name: a field of the record
	// (see sources in encode.go) or the key of an attribute.
	From string
}

// Type is a scalar column type in upper case, without its parameters.
type Type string

// The column types and the wire types they have, from the vendor's type mapping.
var protoTypes = map[Type]descriptorpb.FieldDescriptorProto_Type{
	"TINYINT": descriptorpb.FieldDescriptorProto_TYPE_INT32, "BYTE": descriptorpb.FieldDescriptorProto_TYPE_INT32,
	"SMALLINT": descriptorpb.FieldDescriptorProto_TYPE_INT32, "SHORT": descriptorpb.FieldDescriptorProto_TYPE_INT32,
	"INT": descriptorpb.FieldDescriptorProto_TYPE_INT32, "INTEGER": descriptorpb.FieldDescriptorProto_TYPE_INT32,
	"DATE":   descriptorpb.FieldDescriptorProto_TYPE_INT32,
	"BIGINT": descriptorpb.FieldDescriptorProto_TYPE_INT64, "LONG": descriptorpb.FieldDescriptorProto_TYPE_INT64,
	"TIMESTAMP": descriptorpb.FieldDescriptorProto_TYPE_INT64, "TIMESTAMP_NTZ": descriptorpb.FieldDescriptorProto_TYPE_INT64,
	"FLOAT": descriptorpb.FieldDescriptorProto_TYPE_FLOAT, "DOUBLE": descriptorpb.FieldDescriptorProto_TYPE_DOUBLE,
	"STRING": descriptorpb.FieldDescriptorProto_TYPE_STRING, "VARCHAR": descriptorpb.FieldDescriptorProto_TYPE_STRING,
	"CHAR": descriptorpb.FieldDescriptorProto_TYPE_STRING, "VARIANT": descriptorpb.FieldDescriptorProto_TYPE_STRING,
	"DECIMAL": descriptorpb.FieldDescriptorProto_TYPE_STRING,
	"BOOLEAN": descriptorpb.FieldDescriptorProto_TYPE_BOOL,
	"BINARY":  descriptorpb.FieldDescriptorProto_TYPE_BYTES,
}

// typeText takes the parameters off: DECIMAL(10,2), VARCHAR(40).
var typeText = regexp.MustCompile(`^([A-Za-z_]+)(\([0-9, ]+\))?$`)

// ParseType reads a column type as SQL writes it, in any case.
func ParseType(text string) (Type, error) {
	m := typeText.FindStringSubmatch(strings.TrimSpace(text))
	if m != nil {
		t := Type(strings.ToUpper(m[1]))
		if _, known := protoTypes[t]; known {
			return t, nil
		}
	}
	return "", fmt.Errorf("column type %q is not supported: write BIGINT, INT, DOUBLE, FLOAT, STRING, BOOLEAN, BINARY, TIMESTAMP, DATE, DECIMAL or VARIANT", text)
}

// ColumnConfig is one column of a table in the configuration.
type ColumnConfig struct {
	Name     string `yaml:"name"`
	Type     string `yaml:"type"`
	From     string `yaml:"from"`
	Required bool   `yaml:"required"` // a NOT NULL column
}

// SchemaOf makes the Schema of a table whose columns the configuration lists.
// path is where the list stands in the file.
func SchemaOf(table Target, path string, columns []ColumnConfig) (Schema, []FieldError) {
	s := Schema{Table: table.String()}
	var errs []FieldError
	if len(columns) == 0 {
		errs = append(errs, FieldError{path, "missing: list the columns of the table, name and type"})
	}
	for i, c := range columns {
		at := fmt.Sprintf("%s[%d]", path, i)
		typ, err := ParseType(c.Type)
		if err != nil {
			errs = append(errs, FieldError{at + ".type", err.Error()})
		}
		s.Columns = append(s.Columns, Column{Name: c.Name, Type: typ, Number: int32(i + 1), Nullable: !c.Required, From: c.From})
	}
	if len(errs) == 0 {
		if err := s.Validate(); err != nil {
			errs = append(errs, FieldError{path, err.Error()})
		}
	}
	return s, errs
}

// The field numbers 19000 to 19999 are reserved by protobuf.
const (
	firstReserved = 19000
	lastReserved  = 19999
	maxColumns    = 2000 // of a table, by the service's limits
)

// Validate says what is wrong with s, nil when nothing is.
func (s Schema) Validate() error {
	parts := strings.Split(s.Table, ".")
	if len(parts) != 3 || slices.ContainsFunc(parts, func(p string) bool { return !identifier.MatchString(p) }) {
		return fmt.Errorf("table %q is not catalog.schema.table", s.Table)
	}
	if len(s.Columns) == 0 || len(s.Columns) > maxColumns {
		return fmt.Errorf("table %s has %d columns: 1 to %d are possible", s.Table, len(s.Columns), maxColumns)
	}
	names, numbers := map[string]bool{}, map[int32]bool{}
	for _, c := range s.Columns {
		lower := strings.ToLower(c.Name) // Unity Catalog does not tell case apart
		switch _, known := protoTypes[c.Type]; {
		case !identifier.MatchString(c.Name):
			return fmt.Errorf("column %q of %s is not an identifier: ASCII letters, digits and underscores only", c.Name, s.Table)
		case !known:
			return fmt.Errorf("column %s of %s has the unknown type %q", c.Name, s.Table, c.Type)
		case names[lower]:
			return fmt.Errorf("column %s of %s is there twice", c.Name, s.Table)
		case c.Number < 1 || c.Number > 1<<29-1 || c.Number >= firstReserved && c.Number <= lastReserved || numbers[c.Number]:
			return fmt.Errorf("column %s of %s has field number %d, which is taken or not allowed", c.Name, s.Table, c.Number)
		}
		names[lower], numbers[c.Number] = true, true
	}
	return nil
}

// Descriptor is the serialised google.protobuf.DescriptorProto that the service
// wants when a stream is created: one flat proto2 message, a field a column.
func (s Schema) Descriptor() ([]byte, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	msg := &descriptorpb.DescriptorProto{Name: proto.String("Row")}
	for _, c := range s.Columns {
		label := descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL
		if !c.Nullable {
			label = descriptorpb.FieldDescriptorProto_LABEL_REQUIRED
		}
		msg.Field = append(msg.Field, &descriptorpb.FieldDescriptorProto{
			Name: proto.String(c.Name), Number: proto.Int32(c.Number), Label: label.Enum(), Type: protoTypes[c.Type].Enum(),
		})
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(msg)
}

// The bronze tables of the document.
const (
	MQTTTable   = "mqtt.scada_data.mqtt_events_bronze"
	ModbusTable = "modbus.scada_data.modbus_events_bronze"
	OPCUATable  = "opcua.scada_data.opcua_events_bronze"
)

// BronzeTable is the table of the document for records of protocol p; false for
// records without a protocol.
func BronzeTable(p abi.Protocol) (table string, ok bool) {
	switch p {
	case abi.ProtocolMQTT:
		return MQTTTable, true
	case abi.ProtocolModbus:
		return ModbusTable, true
	case abi.ProtocolOPCUA:
		return OPCUATable, true
	default:
		return "", false
	}
}

// BronzeSchema is the columns of the document's table for protocol p, under the
// name table. The field numbers are those of the document and of its successor,
// which uses the numbers that the document leaves free; those from 100 on are
// ours.
func BronzeSchema(table string, p abi.Protocol) (Schema, bool) {
	text, ok := bronze[p]
	if !ok {
		return Schema{}, false
	}
	s := Schema{Table: table}
	for _, line := range strings.Fields(text) {
		var c Column
		var typ string
		parts := strings.Split(line, ":")
		c.Name, typ = parts[0], parts[1]
		for _, d := range parts[2] {
			c.Number = c.Number*10 + (d - '0')
		}
		c.Type, c.Nullable = Type(typ), true
		s.Columns = append(s.Columns, c)
	}
	return s, true
}

// bronze is the bronze tables as name:type:number.
var bronze = map[abi.Protocol]string{
	abi.ProtocolMQTT: `event_time:BIGINT:1 ingest_time:BIGINT:2 source_name:STRING:3 topic:STRING:4 industry:STRING:5
		sensor_name:STRING:6 value:DOUBLE:7 value_string:STRING:8 unit:STRING:9 sensor_type:STRING:10 timestamp_ms:BIGINT:11
		qos:INT:12 retain:BOOLEAN:13 plc_name:STRING:14 plc_vendor:STRING:15 plc_model:STRING:16 record_id:STRING:100 quality:STRING:101 reason:STRING:102`,
	abi.ProtocolModbus: `event_time:BIGINT:1 ingest_time:BIGINT:2 source_name:STRING:3 slave_id:INT:4 register_address:INT:5
		register_type:STRING:6 industry:STRING:7 sensor_name:STRING:8 sensor_path:STRING:9 sensor_type:STRING:10 unit:STRING:11
		raw_value:DOUBLE:12 scaled_value:INT:13 scale_factor:INT:14 plc_name:STRING:15 plc_vendor:STRING:16 plc_model:STRING:17
		record_id:STRING:100 quality:STRING:101 reason:STRING:102`,
	abi.ProtocolOPCUA: `event_time:BIGINT:1 ingest_time:BIGINT:2 source_name:STRING:3 endpoint:STRING:4 namespace:INT:5
		node_id:STRING:6 browse_path:STRING:7 status_code:BIGINT:8 status:STRING:9 value_type:STRING:10 value:STRING:11
		value_num:DOUBLE:12 raw:BINARY:13 plc_name:STRING:14 plc_vendor:STRING:15 plc_model:STRING:16 record_id:STRING:100 quality:STRING:101 reason:STRING:102`,
}
