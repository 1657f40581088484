package spool

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/crypto/argon2"
)

const (
	keyFileName = "spool.key"
	keySize     = 32
	// A random key of 32 bytes has fewer than 16 different ones about once in
	// 10^20 keys.
	minDistinctKeyBytes = 16
	minPassphrase       = 12 // bytes
)

// kdfParams is how a key is made from a passphrase. RFC 9106 offers t=3 with
// 64 MiB for machines that are short of memory; this takes half of it, since it
// has to run on 512 MB beside everything else.
type kdfParams struct {
	Name      string `json:"name"`
	Salt      []byte `json:"salt"`
	MemoryKiB uint32 `json:"memory_kib"`
	Time      uint32 `json:"time"`
	Threads   uint8  `json:"threads"`
}

func newKDFParams() *kdfParams {
	salt := make([]byte, 16)
	rand.Read(salt)
	return &kdfParams{Name: "argon2id", Salt: salt, MemoryKiB: 32 << 10, Time: 3, Threads: 1}
}

// check bounds what a changed keyring file could make this process spend.
func (p *kdfParams) check() error {
	if p.Name != "argon2id" || len(p.Salt) < 16 || p.MemoryKiB < 8<<10 || p.MemoryKiB > 1<<20 || p.Time < 1 || p.Time > 64 || p.Threads < 1 {
		return fmt.Errorf("unusable key derivation %q (%d KiB, %d rounds)", p.Name, p.MemoryKiB, p.Time)
	}
	return nil
}

// secret is what the user gave: a key or a passphrase.
type secret struct {
	key        []byte // nil: a passphrase
	passphrase string
	from       string // where it came from, for messages
}

// kek returns the cipher that wraps the keyring. params is nil for a key.
func (s secret) kek(params *kdfParams) (kek, error) {
	key := s.key
	if params != nil {
		key = argon2.IDKey([]byte(s.passphrase), params.Salt, params.Time, params.MemoryKiB, params.Threads, keySize)
	}
	wrap, err := hkdf.Key(sha256.New, key, nil, "edgehost spool keyring v1", keySize)
	if err != nil {
		return kek{}, fmt.Errorf("derive key: %w", err)
	}
	block, err := aes.NewCipher(wrap)
	if err != nil {
		return kek{}, fmt.Errorf("make cipher: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return kek{aead}, err
}

// kek makes AES-256-GCM look like tink's AEAD. It wraps a handful of messages
// in its life, so that random 96-bit nonces are far from their limit.
type kek struct{ aead cipher.AEAD }

// Encrypt implements tink.AEAD.
func (k kek) Encrypt(plaintext, associatedData []byte) ([]byte, error) {
	return k.aead.Seal(nil, nil, plaintext, associatedData), nil
}

// Decrypt implements tink.AEAD.
func (k kek) Decrypt(ciphertext, associatedData []byte) ([]byte, error) {
	return k.aead.Open(nil, nil, ciphertext, associatedData)
}

// check refuses two sources for one key.
func (c KeyConfig) check() error {
	set := 0
	for _, v := range []string{c.KeyEnv, c.KeyFile, c.PassphraseEnv} {
		if v != "" {
			set++
		}
	}
	if set > 1 {
		return fmt.Errorf("spool key: set only one of key_env, key_file and passphrase_env")
	}
	return nil
}

// secret reads what c names. generated is the path of the default key file when
// it is the source. mayMake allows to create that file.
func (c KeyConfig) secret(d disk, dir string, getenv func(string) string, mayMake bool) (s secret, generated string, err error) {
	if err := c.check(); err != nil {
		return secret{}, "", err
	}
	switch {
	case c.KeyEnv != "":
		s, err = parseKey(getenv(c.KeyEnv), "environment variable "+c.KeyEnv)
	case c.PassphraseEnv != "":
		s, err = parsePassphrase(getenv(c.PassphraseEnv), "environment variable "+c.PassphraseEnv)
	case c.KeyFile != "":
		s, err = readKeyFile(d, c.KeyFile)
	default:
		generated = d.PathJoin(d.PathDir(dir), keyFileName)
		s, err = readKeyFile(d, generated)
		if errors.Is(err, fs.ErrNotExist) {
			if !mayMake {
				return secret{}, "", fmt.Errorf("%w: the spool at %s has data, but its key file %s is missing: put it back from your backup, or name the key in the configuration; nothing was changed",
					ErrWrongKey, dir, generated)
			}
			s, err = makeKeyFile(d, generated)
		}
	}
	return s, generated, err
}

func readKeyFile(d disk, path string) (secret, error) {
	text, err := d.readFile(path)
	if err != nil {
		return secret{}, fmt.Errorf("read key file: %w", err)
	}
	return parseKey(string(text), "key file "+path)
}

func makeKeyFile(d disk, path string) (secret, error) {
	key := make([]byte, keySize)
	rand.Read(key)
	if err := d.writeFile(path, []byte(base64.StdEncoding.EncodeToString(key)+"\n")); err != nil {
		return secret{}, fmt.Errorf("make key file: %w", err)
	}
	return secret{key: key, from: "key file " + path}, nil
}

const howToMakeAKey = "make one with `openssl rand -base64 32`"

func parseKey(text, from string) (secret, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return secret{}, fmt.Errorf("%w: %s is empty or not set: it must hold 32 random bytes in base64; %s", ErrWeakKey, from, howToMakeAKey)
	}
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		key, err = base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	}
	// The text is a secret: no error may quote it.
	if err != nil {
		return secret{}, fmt.Errorf("%w: %s is not base64: it must hold 32 random bytes; %s", ErrWeakKey, from, howToMakeAKey)
	}
	if len(key) != keySize {
		return secret{}, fmt.Errorf("%w: %s holds %d bytes, it must hold 32; %s", ErrWeakKey, from, len(key), howToMakeAKey)
	}
	if why := regular(key); why != "" {
		return secret{}, fmt.Errorf("%w: %s is not random: %s; %s", ErrWeakKey, from, why, howToMakeAKey)
	}
	return secret{key: key, from: from}, nil
}

// regular says why a key cannot have come from a random generator; "" when it can.
func regular(key []byte) string {
	if distinct(key) < minDistinctKeyBytes {
		return "its bytes repeat"
	}
	text, steady := true, true
	for i, b := range key {
		text = text && b >= 0x20 && b < 0x7f
		steady = steady && (i == 0 || b-key[i-1] == key[1]-key[0])
	}
	switch {
	case steady:
		return "its bytes count up"
	case text:
		return "it is text"
	case bytes.Equal(key[:keySize/2], key[keySize/2:]):
		return "its halves are equal"
	}
	return ""
}

func distinct(b []byte) int {
	var seen [256]bool
	n := 0
	for _, c := range b {
		if !seen[c] {
			seen[c] = true
			n++
		}
	}
	return n
}

func parsePassphrase(text, from string) (secret, error) {
	if len(text) < minPassphrase || distinct([]byte(text)) < 6 {
		return secret{}, fmt.Errorf("%w: the passphrase in %s needs at least %d characters, not all alike", ErrWeakKey, from, minPassphrase)
	}
	return secret{passphrase: text, from: from}, nil
}
