package sources

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/edgehost/edgehost/abi"
)

// FieldError says what is wrong with one key of a configuration. Path is
// relative to the block that was validated ("topics[0].qos"), so that whoever
// read the file can add the block's own path, the file and the line.
type FieldError struct{ Path, Msg string }

func (e FieldError) Error() string { return e.Path + ": " + e.Msg }

// Prefix puts prefix in front of the paths of errs: "tls" makes of "min_version"
// "tls.min_version", and "topics[0]" of "" "topics[0]".
func Prefix(prefix string, errs []FieldError) []FieldError {
	for i := range errs {
		switch {
		case errs[i].Path == "":
			errs[i].Path = prefix
		case strings.HasPrefix(errs[i].Path, "["):
			errs[i].Path = prefix + errs[i].Path
		default:
			errs[i].Path = prefix + "." + errs[i].Path
		}
	}
	return errs
}

// tagKeys are the reserved attribute keys that a tag may fill: those that hold
// text that the peer does not know. Every other reserved key belongs to the
// protocol that sets it.
var tagKeys = []string{
	abi.AttrUnit, abi.AttrIndustry, abi.AttrSensorName, abi.AttrSensorType, abi.AttrSensorPath,
	abi.AttrPLCName, abi.AttrPLCVendor, abi.AttrPLCModel,
}

var protocolKeys = []string{
	abi.AttrQuality, abi.AttrReason, abi.AttrQoS, abi.AttrRetain, abi.AttrTimestampMS, abi.AttrSlaveID,
	abi.AttrRegisterAddress, abi.AttrRegisterType, abi.AttrRawValue, abi.AttrScaledValue, abi.AttrScaleFactor,
	abi.AttrEndpoint, abi.AttrNamespace, abi.AttrBrowsePath, abi.AttrStatus, abi.AttrRaw, abi.AttrServerTime,
	abi.AttrStale, abi.AttrBackfilled, abi.AttrOverflow, abi.AttrEvent,
}

// valueKeys are the attributes that sources set and that have no column: they say
// something of one value.
var valueKeys = []string{attrClockSkew, "event_time_from", "heartbeat", "dup"}

// ValidateTags returns what is wrong with static tags, with paths relative to
// the tags block.
func ValidateTags(tags map[string]string) []FieldError {
	var errs []FieldError
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		if msg := TagKeyError(key); msg != "" {
			errs = append(errs, FieldError{key, msg})
		}
	}
	return errs
}

// TagKeyError says why key cannot be the name of a tag, and "" when it can.
func TagKeyError(key string) string {
	switch {
	case key == "":
		return "a tag needs a name"
	case slices.Contains(protocolKeys, key), slices.Contains(valueKeys, key):
		return fmt.Sprintf("%q is set by the protocol and cannot be a tag; reserved names that can: %s",
			key, strings.Join(tagKeys, ", "))
	}
	return ""
}

// TagAttrs returns static tags as attributes in the order of their keys. Later
// maps win over earlier ones: the source's tags come first, a point's after.
func TagAttrs(tags ...map[string]string) []abi.Attr {
	all := map[string]string{}
	for _, t := range tags {
		maps.Copy(all, t)
	}
	attrs := make([]abi.Attr, 0, len(all))
	for _, key := range slices.Sorted(maps.Keys(all)) {
		attrs = append(attrs, abi.Attr{Key: key, Value: abi.String(all[key])})
	}
	return attrs
}

// SetAttr sets key in attrs, which the caller owns: keys stay unique, and the
// later value wins.
func SetAttr(attrs []abi.Attr, key string, v abi.Value) []abi.Attr {
	for i := range attrs {
		if attrs[i].Key == key {
			attrs[i].Value = v
			return attrs
		}
	}
	return append(attrs, abi.Attr{Key: key, Value: v})
}

// Micros is t as records hold it: microseconds since the Unix epoch.
func Micros(t time.Time) int64 { return t.UnixMicro() }
