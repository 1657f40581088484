package spool

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWrongKeyTouchesNothing(t *testing.T) {
	b := newBed(t, nil)
	q := b.queue("q")
	add(t, q, frame(alice, 1, 1, "x"))
	if _, err := b.s.State("s"); err != nil {
		t.Fatal(err)
	}
	b.close()
	before := hashDir(t, b.o.Dir)
	right := b.o

	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte(newKey()), 0o600); err != nil {
		t.Fatal(err)
	}
	phrase := func(string) string { return "correct horse battery staple" }
	for name, o := range map[string]Options{
		"other key":          {Keys: KeyConfig{KeyEnv: "TEST_KEY"}, Getenv: func(string) string { return newKey() }},
		"other key file":     {Keys: KeyConfig{KeyFile: keyFile}},
		"passphrase instead": {Keys: KeyConfig{PassphraseEnv: "P"}, Getenv: phrase},
		"key file is gone":   {},
	} {
		o.Dir, o.Logger = right.Dir, right.Logger
		_, err := Open(o)
		if !errors.Is(err, ErrWrongKey) || !strings.Contains(err.Error(), "nothing was changed") {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(before, hashDir(t, b.o.Dir)); diff != "" {
			t.Fatalf("%s: %s", name, diff)
		}
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(right.Dir), keyFileName)); !os.IsNotExist(err) {
		t.Fatal("a key file was made beside a spool that has data:", err)
	}
	b.open()
	read(t, b.queue("q").Reader(0), 1)
}

func TestNoNewKeyringBesideData(t *testing.T) {
	b := newBed(t, nil)
	b.queue("q")
	b.close()
	ring := filepath.Join(b.o.Dir, keyringName)
	text, err := os.ReadFile(ring)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("the copy serves", func(t *testing.T) {
		for _, damaged := range [][]byte{nil, []byte("{"), bytes.Replace(text, []byte(`"root": "`), []byte(`"root": "AAAA`), 1)} {
			if err := os.WriteFile(ring, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			b.open()
			b.close()
			if now, err := os.ReadFile(ring); err != nil || !bytes.Equal(now, text) {
				t.Fatalf("keyring was not written again: %v\n%s", err, now)
			}
		}
	})
	for name, spoil := range map[string]func(string) error{
		"missing":    os.Remove,
		"unreadable": func(p string) error { return os.WriteFile(p, []byte("{"), 0o600) },
		"of a later version": func(p string) error {
			return os.WriteFile(p, bytes.Replace(text, []byte(`"format": 1`), []byte(`"format": 2`), 1), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, p := range []string{ring, ring + ".bak"} {
				if err := spoil(p); err != nil {
					t.Fatal(err)
				}
			}
			before := hashDir(t, b.o.Dir)
			if _, err := Open(b.o); !errors.Is(err, ErrWrongKey) || !strings.Contains(err.Error(), ".bak") {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, hashDir(t, b.o.Dir)); diff != "" {
				t.Fatal(diff)
			}
			for _, p := range []string{ring, ring + ".bak"} {
				if err := os.WriteFile(p, text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestGeneratedKey(t *testing.T) {
	b := newBed(t, nil)
	if got := b.s.GeneratedKey(); got != "" {
		t.Fatalf("key %s was generated, though one was given", got)
	}
	o := Options{Dir: filepath.Join(t.TempDir(), "state", "spool"), Logger: quiet()}
	for range 2 {
		s, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(filepath.Dir(o.Dir), "spool.key")
		if s.GeneratedKey() != path {
			t.Fatalf("generated key is %q, want %q", s.GeneratedKey(), path)
		}
		for _, p := range []string{path, filepath.Join(o.Dir, keyringName), filepath.Join(o.Dir, keyringName+".bak"), filepath.Join(o.Dir, lockName)} {
			if info, err := os.Stat(p); err != nil || info.Mode().Perm() != 0o600 {
				t.Fatal(p, info.Mode(), err)
			}
		}
		if info, err := os.Stat(o.Dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Fatal(info.Mode(), err)
		}
		if _, err := s.Queue("q", nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenKeyFileIsComplainedOf(t *testing.T) {
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte(newKey()), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[os.FileMode]bool{0o600: false, 0o400: false, 0o644: true} {
		if err := os.Chmod(keyFile, mode); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		s, err := Open(Options{Dir: filepath.Join(t.TempDir(), "spool"), Logger: textLog(&out), Keys: KeyConfig{KeyFile: keyFile}})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(out.String(), "chmod 600"); got != want {
			t.Fatalf("mode %s: %s", mode, out.String())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPassphrase(t *testing.T) {
	b := newBed(t, nil)
	o := Options{Dir: filepath.Join(t.TempDir(), "spool"), Logger: quiet(), Keys: KeyConfig{PassphraseEnv: "P"}}
	o.Getenv = func(string) string { return "correct horse battery staple" }
	for range 2 {
		s, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	o.Getenv = func(string) string { return "correct horse battery stable" }
	if _, err := Open(o); !errors.Is(err, ErrWrongKey) {
		t.Fatal(err)
	}
	b.close()
}

func TestWeakKeysAreRefused(t *testing.T) {
	steady, text := make([]byte, 32), []byte("this is the text of a passphrase")
	for i := range steady {
		steady[i] = byte(3 * i)
	}
	half := bytes.Repeat([]byte("\x00\xff0123456789abcd"), 2)
	b64 := base64.StdEncoding.EncodeToString
	for _, key := range []string{"", "short", "not base64!!", b64(make([]byte, 32)), b64(make([]byte, 16)), b64(bytes.Repeat([]byte{1, 2}, 16)),
		b64(steady), b64(text), b64(half), newKey() + newKey()} {
		c, getenv := env(key)
		dir := filepath.Join(t.TempDir(), "spool")
		_, err := Open(Options{Dir: dir, Logger: quiet(), Keys: c, Getenv: getenv})
		if !errors.Is(err, ErrWeakKey) || !strings.Contains(err.Error(), "TEST_KEY") {
			t.Fatalf("key %q: %v", key, err)
		}
		if key != "" && strings.Contains(err.Error(), key) {
			t.Fatalf("the error quotes the key: %v", err)
		}
	}
	for _, phrase := range []string{"", "short", "aaaaaaaaaaaaaaaaaaaa"} {
		_, err := Open(Options{Dir: filepath.Join(t.TempDir(), "spool"), Logger: quiet(), Keys: KeyConfig{PassphraseEnv: "P"}, Getenv: func(string) string { return phrase }})
		if !errors.Is(err, ErrWeakKey) {
			t.Fatalf("passphrase %q: %v", phrase, err)
		}
	}
	_, err := Open(Options{Dir: filepath.Join(t.TempDir(), "spool"), Logger: quiet(), Keys: KeyConfig{KeyEnv: "A", KeyFile: "b"}})
	if err == nil || !strings.Contains(err.Error(), "only one of") {
		t.Fatal(err)
	}
}

// FuzzKeyring: no text makes parseKeyring or the opening of it panic, or spend
// more than the bounds of the key derivation.
func FuzzKeyring(f *testing.F) {
	f.Add([]byte(`{"format":1,"id":"00","made":"2026-01-01T00:00:00Z","keyset":"AA==","root":"AA=="}`))
	f.Add([]byte(`{"format":1,"kdf":{"name":"argon2id","salt":"AAAAAAAAAAAAAAAAAAAAAA==","memory_kib":4294967295,"time":1,"threads":1}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		ring, err := parseKeyring(text)
		if err != nil {
			return
		}
		if ring.KDF != nil {
			if ring.KDF.MemoryKiB > 1<<20 {
				t.Fatalf("%d KiB for a key", ring.KDF.MemoryKiB)
			}
			return
		}
		if _, err := ring.open(secret{key: make([]byte, keySize)}); err == nil {
			t.Fatal("a made-up keyring opened")
		}
	})
}

// A derived key is the spool's and the purpose's, and none that the spool uses itself.
func TestKey(t *testing.T) {
	a, b := newBed(t, nil), newBed(t, nil)
	key := func(b *bed, purpose string) string {
		t.Helper()
		k, err := b.s.Key(purpose)
		if err != nil || len(k) != keySize {
			t.Fatalf("%d bytes, %v", len(k), err)
		}
		return string(k)
	}
	first := key(a, "cursor")
	a.close()
	a.open()
	if key(a, "cursor") != first {
		t.Error("another key after reopening")
	}
	if first == key(a, "names") || first == key(b, "cursor") || first == string(a.s.cursorKey) {
		t.Error("the key is not its own")
	}
}
