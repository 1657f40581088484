package spool

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

const (
	keyringName   = "keyring.json"
	keyringFormat = 1
)

// keyring is what the user's key opens: the data keys, and a root secret from
// which the keys of MACs and of hidden names are derived. A new user key wraps
// it anew and touches no data.
type keyring struct {
	id   string
	aead tink.AEAD
	root []byte
}

// keyringFile is the form of keyring.json and keyring.json.bak.
type keyringFile struct {
	Format int        `json:"format"`
	ID     string     `json:"id"`
	Made   time.Time  `json:"made"`
	KDF    *kdfParams `json:"kdf,omitempty"` // absent: wrapped by a key, not a passphrase
	Keyset []byte     `json:"keyset"`        // tink keyset, wrapped
	Root   []byte     `json:"root"`          // 32 bytes, wrapped
}

// derive returns the 32-byte key for one purpose.
func (k *keyring) derive(purpose string) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, k.root, nil, "edgehost spool "+purpose, keySize)
	if err != nil {
		return nil, fmt.Errorf("derive key for %s: %w", purpose, err)
	}
	return key, nil
}

// openKeyring opens the keyring in dir, or makes it when dir has no data yet.
// With the wrong key it changes nothing.
func openKeyring(d disk, dir string, c KeyConfig, getenv func(string) string, log *slog.Logger) (k *keyring, generated string, err error) {
	path := d.PathJoin(dir, keyringName)
	files, damage, err := readKeyrings(d, path)
	if err != nil {
		return nil, "", err
	}
	hasData, err := hasData(d, dir)
	if err != nil {
		return nil, "", err
	}
	if len(files) == 0 && (hasData || damage != nil) {
		return nil, "", fmt.Errorf("%w: the spool at %s has data, but %s and its .bak are missing or unreadable: put one back from your backup, or move the directory away to start empty; nothing was changed%s",
			ErrWrongKey, dir, path, because(damage))
	}
	sec, generated, err := c.secret(d, dir, getenv, len(files) == 0)
	if err != nil {
		return nil, "", err
	}
	if len(files) == 0 {
		k, err := makeKeyring(d, path, sec)
		if err == nil {
			log.Info("spool keyring made: without it and its key the spool cannot be read, so back both up", "keyring", path, "id", k.id)
		}
		return k, generated, err
	}
	for _, f := range files {
		if k, err = f.open(sec); err == nil {
			return k, generated, healKeyrings(d, path, f, log)
		}
	}
	return nil, "", fmt.Errorf("%w: the spool key from %s does not open keyring %s (%s): %w; give the key that it was made with; nothing was changed",
		ErrWrongKey, sec.from, files[0].ID, path, err)
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// readKeyrings returns the readable ones of keyring.json and its copy. damage
// says what is wrong with one that is there and cannot be read.
func readKeyrings(d disk, path string) (files []keyringFile, damage, err error) {
	for _, p := range []string{path, path + ".bak"} {
		text, err := d.readFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read keyring: %w", err)
		}
		f, err := parseKeyring(text)
		if err != nil {
			damage = fmt.Errorf("read keyring %s: %w", p, err)
			continue
		}
		files = append(files, f)
	}
	return files, damage, nil
}

func parseKeyring(text []byte) (keyringFile, error) {
	var f keyringFile
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return f, err
	}
	if f.Format != keyringFormat {
		return f, fmt.Errorf("format %d is not known here, this version reads %d", f.Format, keyringFormat)
	}
	if f.KDF != nil {
		return f, f.KDF.check()
	}
	return f, nil
}

func hasData(d disk, dir string) (bool, error) {
	for _, sub := range []string{queueDir, stateDir, dlqDir} {
		names, err := d.list(d.PathJoin(dir, sub))
		if err != nil {
			return false, fmt.Errorf("list %s: %w", sub, err)
		}
		if len(names) > 0 {
			return true, nil
		}
	}
	return false, nil
}

func (f keyringFile) open(sec secret) (*keyring, error) {
	if (f.KDF != nil) != (sec.key == nil) {
		if f.KDF != nil {
			return nil, errors.New("it was made with a passphrase, so passphrase_env must name it")
		}
		return nil, errors.New("it was made with a key, so key_env or key_file must name it")
	}
	wrap, err := sec.kek(f.KDF)
	if err != nil {
		return nil, err
	}
	handle, err := keyset.ReadWithAssociatedData(keyset.NewBinaryReader(bytes.NewReader(f.Keyset)), wrap, f.bound("keyset"))
	if err != nil {
		return nil, errors.New("the seal does not match")
	}
	root, err := wrap.Decrypt(f.Root, f.bound("root"))
	if err != nil {
		return nil, errors.New("the seal of the root secret does not match")
	}
	primitive, err := aead.New(handle)
	if err != nil {
		return nil, fmt.Errorf("use keyset: %w", err)
	}
	return &keyring{id: f.ID, aead: primitive, root: root}, nil
}

// bound is the associated data of a wrapped part: it cannot be put into another keyring or place.
func (f keyringFile) bound(part string) []byte { return []byte("ehk1|" + f.ID + "|" + part) }

func makeKeyring(d disk, path string, sec secret) (*keyring, error) {
	id, root := make([]byte, 8), make([]byte, keySize)
	rand.Read(id)
	rand.Read(root)
	f := keyringFile{Format: keyringFormat, ID: hex.EncodeToString(id), Made: time.Now().UTC().Truncate(time.Second)}
	if sec.key == nil {
		f.KDF = newKDFParams()
	}
	handle, err := keyset.NewHandle(aead.XAES256GCM192BitNonceKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("make keyset: %w", err)
	}
	wrap, err := sec.kek(f.KDF)
	if err != nil {
		return nil, err
	}
	var wrapped bytes.Buffer
	if err := handle.WriteWithAssociatedData(keyset.NewBinaryWriter(&wrapped), wrap, f.bound("keyset")); err != nil {
		return nil, fmt.Errorf("wrap keyset: %w", err)
	}
	f.Keyset = wrapped.Bytes()
	if f.Root, err = wrap.Encrypt(root, f.bound("root")); err != nil {
		return nil, fmt.Errorf("wrap root secret: %w", err)
	}
	if err := f.write(d, path); err != nil {
		return nil, err
	}
	if err := f.write(d, path+".bak"); err != nil {
		return nil, err
	}
	return f.open(sec)
}

func (f keyringFile) write(d disk, path string) error {
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("encode keyring: %w", err)
	}
	if err := d.writeFile(path, append(text, '\n')); err != nil {
		return fmt.Errorf("write keyring: %w", err)
	}
	return nil
}

// healKeyrings makes the file and its copy equal to the one that opened.
func healKeyrings(d disk, path string, good keyringFile, log *slog.Logger) error {
	want, err := json.MarshalIndent(good, "", "  ")
	if err != nil {
		return fmt.Errorf("encode keyring: %w", err)
	}
	for _, p := range []string{path, path + ".bak"} {
		text, err := d.readFile(p)
		if err == nil && bytes.Equal(bytes.TrimSpace(text), want) {
			continue
		}
		log.Warn("spool keyring file was missing or damaged; written again from its copy", "file", p)
		if err := good.write(d, p); err != nil {
			return err
		}
	}
	return nil
}
