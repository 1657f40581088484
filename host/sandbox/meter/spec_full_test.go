//go:build spectest

package meter

import (
	"os"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero/api"
)

// TestSpec runs the whole testsuite. The bounds are a little below what the
// files of wazero 1.12.0 hold, so that an empty run cannot pass.
func TestSpec(t *testing.T) {
	var count specCount
	for _, v := range []struct {
		version  string
		features api.CoreFeatures
	}{{"v1", api.CoreFeaturesV1}, {"v2", api.CoreFeaturesV2}} {
		dir := specDir(t, v.version)
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if name, ok := strings.CutSuffix(f.Name(), ".json"); ok {
				t.Run(v.version+"/"+name, func(t *testing.T) { runSpec(t, dir, name, v.features, &count) })
			}
		}
	}
	t.Logf("%+v", count)
	if count.returns < 60_000 || count.traps < 1_900 || count.modules < 2_100 || count.yields < 1_000 {
		t.Errorf("too little ran: %+v", count)
	}
}
