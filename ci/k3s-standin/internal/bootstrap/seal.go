package bootstrap

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
)

// KeyPrefix is where K3s keeps its bootstrap data in the datastore.
const KeyPrefix = "/bootstrap/"

const (
	saltSize   = 16
	iterations = 100_000
)

// ErrOtherToken is K3s's wording.
var ErrOtherToken = errors.New("bootstrap data already found and encrypted with different token")

// Key is the datastore's key for the data of a password's holder.
func Key(password string) string {
	sum := sha256.Sum256([]byte(password))
	return KeyPrefix + hex.EncodeToString(sum[:])[:12]
}

// Seal encrypts a bundle with the server's password.
func Seal(b Bundle, password string) ([]byte, error) {
	b.Members = nil
	plain, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	salt := make([]byte, saltSize)
	if _, err := rand.Read(salt); err != nil {
		return nil, err
	}
	aead, err := newAEAD(password, salt)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return aead.Seal(append(salt, nonce...), nonce, plain, nil), nil
}

// Open is Seal's inverse.
func Open(sealed []byte, password string) (Bundle, error) {
	var b Bundle
	if len(sealed) < saltSize {
		return b, ErrOtherToken
	}
	aead, err := newAEAD(password, sealed[:saltSize])
	if err != nil {
		return b, err
	}
	sealed = sealed[saltSize:]
	if len(sealed) < aead.NonceSize() {
		return b, ErrOtherToken
	}
	plain, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], nil)
	if err != nil {
		return b, ErrOtherToken
	}
	return b, json.Unmarshal(plain, &b)
}

func newAEAD(password string, salt []byte) (cipher.AEAD, error) {
	key, err := pbkdf2.Key(sha256.New, password, salt, iterations, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
