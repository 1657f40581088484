package sources

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/edgehost/edgehost/abi"
)

func TestTagAttrs(t *testing.T) {
	got := TagAttrs(map[string]string{"plc_name": "A", "line": "1"}, nil, map[string]string{"line": "2", "area": "north"})
	want := []abi.Attr{{Key: "area", Value: abi.String("north")}, {Key: "line", Value: abi.String("2")}, {Key: "plc_name", Value: abi.String("A")}}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(abi.Value{})); diff != "" {
		t.Error(diff)
	}
}

func TestSetAttrKeepsKeysUnique(t *testing.T) {
	attrs := SetAttr(SetAttr(SetAttr(nil, "a", abi.Int(1)), "b", abi.Int(2)), "a", abi.Int(3))
	if len(attrs) != 2 || attrs[0].Value != abi.Int(3) {
		t.Errorf("%v", attrs)
	}
}

func TestValidateTags(t *testing.T) {
	if errs := ValidateTags(map[string]string{"industry": "x", "plc_model": "y", "line": "z", "unit": "C"}); len(errs) > 0 {
		t.Errorf("good tags are refused: %v", errs)
	}
	errs := ValidateTags(map[string]string{"qos": "1", "": "x", "status": "ok", "heartbeat": "x"})
	var paths []string
	for _, e := range errs {
		paths = append(paths, e.Path)
	}
	if diff := cmp.Diff([]string{"", "heartbeat", "qos", "status"}, paths); diff != "" {
		t.Error(diff)
	}
}

func TestPrefix(t *testing.T) {
	got := Prefix("tls", []FieldError{{"min_version", "x"}, {"", "y"}, {"[0].qos", "z"}})
	want := []FieldError{{"tls.min_version", "x"}, {"tls", "y"}, {"tls[0].qos", "z"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDialErrorSaysWhatToCheck(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	for _, err := range []error{refused, io.EOF, &net.DNSError{Err: "no such host", Name: "x"}, errors.New("odd"), syscall.ETIMEDOUT} {
		worded := DialError("mqtt://10.0.0.1:1883", err)
		if !errors.Is(worded, err) {
			t.Errorf("%v is not wrapped", err)
		}
		for _, want := range []string{"mqtt://10.0.0.1:1883", err.Error(), "endpoint", "reaches", "firewall", "host networking"} {
			if !strings.Contains(worded.Error(), want) {
				t.Errorf("%q does not say %q", worded, want)
			}
		}
	}
}
