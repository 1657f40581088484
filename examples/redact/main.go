// Redact removes attributes that nobody outside the plant may see, and replaces
// others by a keyed hash: the same person has the same hash, but no name.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"path"
	"strconv"
	"strings"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/abi/guest"
)

func init() {
	drop, hash := patterns("drop"), patterns("hash")
	key := []byte(guest.Config("key"))
	if len(hash) > 0 && len(key) < 16 {
		guest.Refuse("config key key: at least 16 characters are needed, or hashes can be guessed")
	}
	mac := hmac.New(sha256.New, key)
	guest.Map(func(r *guest.Record) {
		var gone, hashed []string
		for name := range r.Attrs() {
			switch {
			case matches(drop, name):
				gone = append(gone, name)
			case matches(hash, name):
				hashed = append(hashed, name)
			}
		}
		for _, name := range gone {
			r.DelAttr(name)
		}
		for _, name := range hashed {
			v, _ := r.Attr(name)
			mac.Reset()                                                                 // cheaper than a new one, which hashes the key again
			mac.Write([]byte(name + "=" + v.Text() + strconv.FormatUint(v.Bits(), 16))) // text, or the bits of a number
			r.SetAttr(name, abi.String(hex.EncodeToString(mac.Sum(nil)[:8])))
		}
	})
}

// patterns reads a list like "operator_*, badge".
func patterns(key string) (list []string) {
	for p := range strings.SplitSeq(guest.Config(key), ",") {
		if p = strings.TrimSpace(p); p == "" {
			continue
		}
		if _, err := path.Match(p, ""); err != nil {
			guest.Refuse("config key " + key + ": " + p + " is no pattern")
		}
		list = append(list, p)
	}
	return list
}

func matches(list []string, name string) bool {
	for _, p := range list {
		if ok, _ := path.Match(p, name); ok { // checked
			return true
		}
	}
	return false
}

func main() {}
