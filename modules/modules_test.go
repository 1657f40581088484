package modules

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, dir string) *Registry {
	t.Helper()
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func put(t *testing.T, r *Registry, wasm string) string {
	t.Helper()
	digest, err := r.Put([]byte(wasm))
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func point(t *testing.T, r *Registry, name, digest string, activate bool) Entry {
	t.Helper()
	e, err := r.Point(name, digest, activate, "test", noon)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestPointReopenRollback(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "modules")
	r := open(t, dir)
	a, b, c := put(t, r, "a"), put(t, r, "bb"), put(t, r, "ccc")
	point(t, r, "scale", a, true)
	point(t, r, "scale", b, true)
	point(t, r, "scale", b, true) // again: no second step back
	point(t, r, "scale", c, false)

	r = open(t, dir)
	rev := func(d string, size int64) Revision { return Revision{Digest: d, Size: size, At: noon, By: "test"} }
	want := []Entry{{Name: "scale", Active: b, Previous: a, Revisions: []Revision{rev(c, 3), rev(b, 2), rev(a, 1)}}}
	if diff := cmp.Diff(want, r.List()); diff != "" {
		t.Errorf("List after reopening (-want +got):\n%s", diff)
	}
	if got, ok := r.Active("scale"); !ok || got != rev(b, 2) {
		t.Errorf("Active = %v, %v", got, ok)
	}
	e, err := r.Rollback("scale")
	if err != nil || e.Active != a || e.Previous != "" {
		t.Errorf("Rollback = %+v, %v; want active %s", e, err, a)
	}
	if _, err := open(t, dir).Rollback("scale"); !errors.Is(err, ErrNoPrevious) {
		t.Errorf("second Rollback: %v, want ErrNoPrevious", err)
	}
	point(t, r, "scale", c, true)
	if e := point(t, r, "scale", b, true); e.Previous != c || len(e.Revisions) != 3 {
		t.Errorf("entry = %+v; want Previous %s and 3 revisions", e, c)
	}
	wasm, err := r.Read(c)
	if err != nil || string(wasm) != "ccc" {
		t.Errorf("Read = %q, %v", wasm, err)
	}
}

func TestRefusals(t *testing.T) {
	r := open(t, t.TempDir())
	a := put(t, r, "a")
	for _, name := range []string{"", ".", "..", "a/b", "../a", "Scale", "a b", "-a", strings.Repeat("a", 65), "a\x00", "ä"} {
		if _, err := r.Point(name, a, true, "", noon); !errors.Is(err, ErrName) {
			t.Errorf("Point(%q): %v, want ErrName", name, err)
		}
	}
	missing := strings.Repeat("0", 64)
	for _, digest := range []string{missing, "", "../../etc/passwd", "zz", a[:63]} {
		if _, err := r.Read(digest); !errors.Is(err, ErrNotFound) {
			t.Errorf("Read(%q): %v, want ErrNotFound", digest, err)
		}
		if _, err := r.Point("n", digest, true, "", noon); !errors.Is(err, ErrNotFound) {
			t.Errorf("Point at %q: %v, want ErrNotFound", digest, err)
		}
	}
	if _, err := r.Put(nil); err == nil {
		t.Error("Put of nothing: no error")
	}
	if _, err := r.Rollback("n"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Rollback of an unknown name: %v, want ErrNotFound", err)
	}
	if _, ok := r.Active("n"); ok || len(r.List()) != 0 {
		t.Errorf("a refused Point left something: %v", r.List())
	}
	point(t, r, "idle", a, false)
	if rev, ok := r.Active("idle"); ok {
		t.Errorf("Active of a name without an active revision = %v", rev)
	}
}

func TestDamagedRevision(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	a, b := put(t, r, "good module"), put(t, r, "other")
	point(t, r, "m", a, true)
	point(t, r, "m", b, true)
	path := filepath.Join(dir, "revisions", a+".wasm")
	if err := os.WriteFile(path, []byte("good mOdule"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(a); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path) {
		t.Errorf("Read: %v, want ErrDamaged that names the file", err)
	}
	if _, err := r.Rollback("m"); !errors.Is(err, ErrDamaged) {
		t.Errorf("Rollback to a damaged revision: %v, want ErrDamaged", err)
	}
	if rev, _ := r.Active("m"); rev.Digest != b {
		t.Errorf("a failed Rollback changed the active revision to %s", rev.Digest)
	}
	put(t, r, "good module")
	if wasm, err := r.Read(a); err != nil || string(wasm) != "good module" {
		t.Errorf("Put did not mend the revision: %q, %v", wasm, err)
	}
}

func TestDamagedName(t *testing.T) {
	for name, content := range map[string]string{
		"empty":          "",
		"torn":           `{"version":1,"name":"m","act`,
		"other name":     `{"version":1,"name":"x","active":""}`,
		"future version": `{"version":2,"name":"m","active":""}`,
		"bad pointer":    `{"version":1,"name":"m","active":"ff"}`,
		"bad previous":   `{"version":1,"name":"m","active":"","previous":["ff"]}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			r := open(t, dir)
			a := put(t, r, "a")
			point(t, r, "m", a, true)
			point(t, r, "intact", a, true)
			if err := os.WriteFile(filepath.Join(dir, "names", "m.json"), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			r = open(t, dir)
			if rev, ok := r.Active("m"); ok {
				t.Errorf("Active = %v", rev)
			}
			if list := r.List(); len(list) != 2 || !strings.Contains(list[1].Damaged, "m.json") {
				t.Errorf("List = %+v; want the damage of m named", list)
			}
			if _, err := r.Rollback("m"); !errors.Is(err, ErrDamaged) {
				t.Errorf("Rollback: %v, want ErrDamaged", err)
			}
			if _, ok := r.Active("intact"); !ok {
				t.Error("the damage of one name took another with it")
			}
			if e := point(t, r, "m", a, true); e.Active != a || e.Damaged != "" {
				t.Errorf("Point over damage = %+v", e)
			}
		})
	}
}

// revisionFiles are the digests of the revisions on disk.
func revisionFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(dir, "revisions"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		out = append(out, strings.TrimSuffix(f.Name(), ".wasm"))
	}
	return out
}

func TestRetention(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	var digests []string
	for i := range 3 * keepRevisions {
		digests = append(digests, put(t, r, fmt.Sprint("revision ", i)))
		point(t, r, "m", digests[i], true)
		if i == 0 {
			point(t, r, "shares", digests[i], false)
		}
	}
	newest := digests[len(digests)-keepRevisions:]
	if got, want := revisionFiles(t, dir), slices.Sorted(slices.Values(append([]string{digests[0]}, newest...))); !slices.Equal(got, want) {
		t.Errorf("on disk %q, want %q", got, want)
	}
	for i := len(newest) - 2; i >= 0; i-- {
		if e, err := r.Rollback("m"); err != nil || e.Active != newest[i] {
			t.Fatalf("Rollback to %d: %+v, %v", i, e, err)
		}
	}
	if _, err := r.Rollback("m"); !errors.Is(err, ErrNoPrevious) {
		t.Errorf("Rollback beyond what is kept: %v, want ErrNoPrevious", err)
	}

	// The active one stays however old it is, and so does the one before.
	active, previous := newest[1], newest[0]
	point(t, r, "m", active, true)
	for i := range 2 * keepRevisions {
		point(t, r, "m", put(t, r, fmt.Sprint("inactive ", i)), false)
	}
	e := open(t, dir).List()[0]
	if e.Active != active || e.Previous != previous || len(e.Revisions) != keepRevisions+2 {
		t.Errorf("entry = %+v", e)
	}
	for _, digest := range []string{active, previous} {
		if _, err := r.Read(digest); err != nil {
			t.Error(err)
		}
	}
	if n := len(revisionFiles(t, dir)); n != keepRevisions+3 {
		t.Errorf("%d revisions on disk", n)
	}
}

// What was Put is not deleted before a name takes it, and a revision that no name
// has goes with the next Open, unless a name is damaged.
func TestStrays(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	first := put(t, r, "first")
	point(t, r, "m", first, true)
	for i := range keepRevisions + 2 {
		point(t, r, "m", put(t, r, fmt.Sprint(i)), true)
	}
	put(t, r, "first")
	waits := put(t, r, "waits")
	point(t, r, "m", put(t, r, "another"), true)
	point(t, r, "n", waits, true)
	point(t, r, "n", first, true)

	stray := put(t, r, "stray")
	name := filepath.Join(dir, "names", "n.json")
	intact, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range [][]byte{[]byte("torn"), intact} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		r = open(t, dir)
		if there := slices.Contains(revisionFiles(t, dir), stray); there != (string(content) == "torn") {
			t.Errorf("with the name file %.20q the stray is there: %v", content, there)
		}
	}
	if rev, ok := r.Active("n"); !ok || rev.Digest != first {
		t.Errorf("Active = %v, %v", rev, ok)
	}
	if _, err := r.Read(first); err != nil {
		t.Error(err)
	}
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "modules")
	if err := os.MkdirAll(filepath.Join(dir, "names"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := open(t, dir)
	point(t, r, "m", put(t, r, "a"), true)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if err == nil && info.Mode().Perm() != want {
			t.Errorf("%s is %o, want %o", path, info.Mode().Perm(), want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestOrder holds replace to write, sync, rename, sync of the directory: any
// other order can lose the file to a power failure.
func TestOrder(t *testing.T) {
	r := open(t, t.TempDir())
	var steps []string
	r.step = func(s string) { steps = append(steps, s) }
	put(t, r, "a")
	if want := []string{"create", "write", "sync", "rename", "sync dir"}; !slices.Equal(steps, want) {
		t.Errorf("steps = %q, want %q", steps, want)
	}
}

// TestMain is the child of TestCrash too: it uploads and dies at a step.
func TestMain(m *testing.M) {
	dir, step := os.Getenv("MODULES_CRASH_DIR"), os.Getenv("MODULES_CRASH_AT")
	if dir == "" {
		os.Exit(m.Run())
	}
	r, err := Open(dir)
	if err != nil {
		os.Exit(1)
	}
	file, at, _ := strings.Cut(step, ":")
	n := 0
	r.step = func(s string) {
		if s == "create" {
			n++
		}
		if s == at && (file == "revision") == (n == 1) {
			os.Exit(99)
		}
	}
	digest, err := r.Put([]byte("new"))
	if err != nil {
		os.Exit(1)
	}
	if _, err = r.Point("m", digest, true, "child", noon); err != nil {
		os.Exit(1)
	}
}

func TestCrash(t *testing.T) {
	for _, file := range []string{"revision", "name"} {
		for _, step := range []string{"create", "write", "sync", "rename", "sync dir"} {
			t.Run(file+" "+step, func(t *testing.T) {
				dir := t.TempDir()
				r := open(t, dir)
				old := put(t, r, "old")
				point(t, r, "m", old, true)

				child := exec.Command(os.Args[0])
				child.Env = append(os.Environ(), "MODULES_CRASH_DIR="+dir, "MODULES_CRASH_AT="+file+":"+step)
				var exit *exec.ExitError
				if out, err := child.CombinedOutput(); !errors.As(err, &exit) || exit.ExitCode() != 99 {
					t.Fatalf("the child did not stop at the step: %v\n%s", err, out)
				}

				r = open(t, dir)
				checkClean(t, dir)
				rev, ok := r.Active("m")
				if !ok {
					t.Fatal("the name is gone")
				}
				moved := file == "name" && step == "sync dir"
				if moved != (rev.Digest != old) {
					t.Errorf("active = %s; moved should be %v", rev.Digest, moved)
				}
				if wasm, err := r.Read(rev.Digest); err != nil || !bytes.Equal(wasm, []byte(map[bool]string{false: "old", true: "new"}[moved])) {
					t.Errorf("Read = %q, %v", wasm, err)
				}
				point(t, r, "m", put(t, r, "new"), true) // and life goes on
			})
		}
	}
}

func checkClean(t *testing.T, dir string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dir, "*", torn+"*"))
	if err != nil || len(left) > 0 {
		t.Errorf("torn files after Open: %v %v", left, err)
	}
}

func TestDiskErrors(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	a := put(t, r, "a")
	point(t, r, "m", a, true)
	names := filepath.Join(dir, "names")
	if err := os.Rename(names, names+"-gone"); err != nil {
		t.Fatal(err)
	}
	b := put(t, r, "b")
	if _, err := r.Point("m", b, true, "", noon); err == nil {
		t.Error("Point without a directory: no error")
	}
	if rev, _ := r.Active("m"); rev.Digest != a {
		t.Errorf("a failed Point changed the active revision in memory to %s", rev.Digest)
	}
	if err := os.WriteFile(names, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil {
		t.Error("Open over a file: no error")
	}
}

func FuzzNameFile(f *testing.F) {
	f.Add([]byte(`{"version":1,"name":"m","active":"","previous":[],"revisions":[]}`))
	f.Add([]byte(`{"version":1,"name":"m","active":"aa","revisions":[{"digest":"aa","size":-1}]}`))
	f.Add([]byte(`[`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(dir, "m.json")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := readNameFile(path, "m")
		if err != nil {
			t.Fatal(err)
		}
		if _, known := file.find(file.Active); file.Active != "" && !known {
			t.Errorf("accepted a pointer to nowhere: %s", content)
		}
	})
}
