package mqtt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/sources"
)

// Bounds of the properties of one message that become attributes.
const (
	maxProperties = 64 << 10 // bytes
	maxUser       = 64       // user properties
)

// Attributes that a message of MQTT 5 may have. The key of a user property
// follows attrUserPrefix.
const (
	attrContentType = "content_type"
	attrUserPrefix  = "user."
)

// readProperties reads the properties of a PUBLISH (MQTT 5, section 3.3.2.3) of
// which rest bytes are left, and returns what is left after them.
func (g *guard) readProperties(m *message, rest int) (int, error) {
	length, size, err := readLength(g.r)
	if err != nil {
		return 0, err
	}
	rest -= size + length
	if rest < 0 {
		return 0, fmt.Errorf("broker sent a malformed packet: PUBLISH with properties of %d bytes", length)
	}
	if length > maxProperties {
		_, err := g.r.Discard(length)
		return rest, err
	}
	data, err := g.take(length)
	if err != nil {
		return 0, err
	}
	if m.attrs, err = propertyAttrs(data); err != nil {
		return 0, err
	}
	return rest, nil
}

// The sizes of properties that say nothing to us; -1 is a string or binary
// data, -2 a variable byte integer.
var propertySizes = map[byte]int{
	0x01: 1,  // payload format
	0x02: 4,  // expiry
	0x08: -1, // response topic
	0x09: -1, // correlation data
	0x0b: -2, // subscription identifier
	0x23: 2,  // topic alias; we allow none
}

var errProperties = errors.New("broker sent a malformed packet: PUBLISH with properties that are none")

func propertyAttrs(data []byte) ([]abi.Attr, error) {
	var attrs []abi.Attr
	users := 0
	for len(data) > 0 {
		id := data[0]
		data = data[1:]
		var key, value string
		var ok bool
		switch id {
		case 0x03:
			value, data, ok = cutString(data)
			attrs = sources.SetAttr(attrs, attrContentType, abi.String(value))
		case 0x26:
			key, data, ok = cutString(data)
			if ok {
				value, data, ok = cutString(data)
			}
			if users++; ok && users <= maxUser {
				attrs = sources.SetAttr(attrs, attrUserPrefix+key, abi.String(value))
			}
		default:
			data, ok = skipProperty(id, data)
		}
		if !ok {
			return nil, errProperties
		}
	}
	return attrs, nil
}

func skipProperty(id byte, data []byte) (rest []byte, ok bool) {
	size, known := propertySizes[id]
	switch {
	case !known:
		return nil, false
	case size == -1:
		_, rest, ok = cutString(data)
		return rest, ok
	case size == -2:
		var err error
		if _, size, err = readLength(bytes.NewReader(data)); err != nil {
			return nil, false
		}
	}
	if len(data) < size {
		return nil, false
	}
	return data[size:], true
}

func cutString(data []byte) (s string, rest []byte, ok bool) {
	if len(data) < 2 {
		return "", nil, false
	}
	n := int(binary.BigEndian.Uint16(data))
	if len(data)-2 < n {
		return "", nil, false
	}
	return strings.ToValidUTF8(string(data[2:2+n]), "\uFFFD"), data[2+n:], true
}
