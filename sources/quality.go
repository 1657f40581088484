package sources

import (
	"github.com/edgehost/edgehost/abi"
)

// The status codes that sources without codes of their own put into records:
// OPC UA part 4, section 7.39, with the numbers of part 6, annex A.
const (
	StatusGood uint32 = 0
	StatusBad  uint32 = 0x80000000
	// StatusBadDecoding says that the peer's bytes do not hold what is configured.
	StatusBadDecoding uint32 = 0x80070000
	// StatusBadCommunication says that the peer did not answer.
	StatusBadCommunication uint32 = 0x80050000
	// StatusBadTooLarge (BadEncodingLimitsExceeded) says that the value exceeds a limit.
	StatusBadTooLarge uint32 = 0x80080000
	// StatusBadNoCommunication says that nothing comes from a point and that there
	// is no value to go on with.
	StatusBadNoCommunication uint32 = 0x80310000
	// StatusUncertain says that there is a value which its device does not vouch for.
	StatusUncertain uint32 = 0x40000000
)

// The three qualities, as the attribute quality spells them.
const (
	Good      = "Good"
	Uncertain = "Uncertain"
	Bad       = "Bad"
)

// Quality is the quality that the top two bits of a status code stand for (OPC
// UA part 4, section 7.39.1).
func Quality(status uint32) string {
	switch status >> 30 {
	case 0:
		return Good
	case 1:
		return Uncertain
	default:
		return Bad
	}
}

var statusNames = map[uint32]string{
	StatusGood: Good, StatusUncertain: Uncertain, StatusBad: Bad, StatusBadDecoding: "BadDecodingError",
	StatusBadCommunication: "BadCommunicationError", StatusBadTooLarge: "BadEncodingLimitsExceeded",
	StatusBadNoCommunication: "BadNoCommunication",
}

// NotGood makes r a record that is not good: its status, and the attributes
// quality, status (the code's name; "" takes that of a code above) and reason,
// which says why in words and is never empty. Every source makes them with it,
// so that modules and tables see one form. The attributes of r are the caller's.
func NotGood(r *abi.Record, status uint32, name, reason string) {
	if name == "" {
		if name = statusNames[status]; name == "" {
			name = Quality(status)
		}
	}
	r.Status = status
	r.Attrs = SetAttr(r.Attrs, abi.AttrQuality, abi.String(Quality(status)))
	r.Attrs = SetAttr(r.Attrs, abi.AttrStatus, abi.String(name))
	r.Attrs = SetAttr(r.Attrs, abi.AttrReason, abi.String(reason))
}
