package peer

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// SigningKey is a key that we sign with.
type SigningKey struct {
	ID      string // with its algorithm: "ed25519:a_abcd"
	Private ed25519.PrivateKey
}

// Public is the half that others verify with.
func (k SigningKey) Public() ed25519.PublicKey { return k.Private.Public().(ed25519.PublicKey) }

// OldKey is a key that we signed with once: old events still name it.
type OldKey struct {
	ID      string
	Public  ed25519.PublicKey
	Expired time.Time
}

// Keys are our own: the first of Signing signs, all of them are published, and the old ones
// stay listed so that our events of the past can be checked.
type Keys struct {
	ServerName string
	Signing    []SigningKey
	Old        []OldKey
}

// keyVersion: spec: s2s/getServerKey, "the version must have characters matching ...".
var keyVersion = regexp.MustCompile(`^[a-zA-Z0-9_]{1,64}$`)

// LoadKeys reads our keys from path, and makes them there if the file does not exist. The file is
// Synapse's: a line "ed25519 VERSION SEED" for each signing key. A key that is no longer used is a
// line "ed25519 VERSION EXPIRED_TS PUBLIC_KEY".
func LoadKeys(path, serverName string) (*Keys, error) {
	if !ValidServerName(serverName) {
		return nil, fmt.Errorf("%q is not a valid server name", serverName)
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKeys(path, serverName)
	}
	if err != nil {
		return nil, fmt.Errorf("read the signing key: %w", err)
	}
	keys, err := parseKeys(text)
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w", path, err)
	}
	keys.ServerName = serverName
	return keys, nil
}

func parseKeys(text []byte) (*Keys, error) {
	keys := &Keys{}
	seen := map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 3 && len(fields) != 4 {
			return nil, fmt.Errorf("line %d: want \"ed25519 VERSION SEED\" or \"ed25519 VERSION EXPIRED_TS PUBLIC_KEY\"", n)
		}
		if fields[0] != "ed25519" || !keyVersion.MatchString(fields[1]) {
			return nil, fmt.Errorf("line %d: the algorithm must be ed25519 and the version letters, digits and _", n)
		}
		id := "ed25519:" + fields[1]
		if seen[id] {
			return nil, fmt.Errorf("line %d: the key %s stands there twice", n, id)
		}
		seen[id] = true
		secret, err := decodeBase64(fields[len(fields)-1])
		if err != nil || len(secret) != ed25519.SeedSize {
			return nil, fmt.Errorf("line %d: the key must be 32 bytes in base64", n) // never print it
		}
		if len(fields) == 3 {
			keys.Signing = append(keys.Signing, SigningKey{id, ed25519.NewKeyFromSeed(secret)})
			continue
		}
		expired, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil || expired <= 0 {
			return nil, fmt.Errorf("line %d: the expiry must be in milliseconds since 1970", n)
		}
		keys.Old = append(keys.Old, OldKey{id, secret, time.UnixMilli(expired)})
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(keys.Signing) == 0 {
		return nil, errors.New("holds no key to sign with")
	}
	return keys, nil
}

// NewSigningKey makes a key under a version of chance, so that a server that lost its key
// does not publish another one under the same name.
func NewSigningKey() SigningKey {
	_, private, _ := ed25519.GenerateKey(nil) // crypto/rand does not fail
	var version [4]byte
	rand.Read(version[:])
	return SigningKey{"ed25519:a_" + hex.EncodeToString(version[:]), private}
}

// makeKeys writes a new key, durably and never over another: a server that forgets its key
// after a power cut has lost its name with its peers.
func makeKeys(path, serverName string) (*Keys, error) {
	key := NewSigningKey()
	line := fmt.Sprintf("ed25519 %s %s\n", strings.TrimPrefix(key.ID, "ed25519:"), encodeBase64(key.Private.Seed()))
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, ".signing.key-*") // made with mode 0600
	if err != nil {
		return nil, fmt.Errorf("make the signing key: %w", err)
	}
	defer os.Remove(temp.Name())
	_, err = temp.WriteString(line)
	if err == nil {
		err = temp.Sync()
	}
	if closeErr := temp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		// A link fails if somebody was faster; not every file system has links.
		if err = os.Link(temp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
			err = os.Rename(temp.Name(), path)
		}
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("make the signing key: %w", err)
	}
	return &Keys{ServerName: serverName, Signing: []SigningKey{key}}, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Key is the one we sign with.
func (k *Keys) Key() SigningKey { return k.Signing[0] }

// Sign adds our signature to a JSON object.
func (k *Keys) Sign(object []byte) ([]byte, error) { return SignJSON(k.ServerName, k.Key(), object) }

// publishedFor is how long others may rely on our key list without asking again. The
// specification lets nobody rely on it for more than 7 days; a day bounds how long a stolen key
// that we withdrew goes on being believed.
const publishedFor = 24 * time.Hour

// serverKeys is the body of /_matrix/key/v2/server.
//
// spec: s2s/getServerKey
type serverKeys struct {
	ServerName    string                  `json:"server_name"`
	VerifyKeys    map[string]verifyKey    `json:"verify_keys"`
	OldVerifyKeys map[string]oldVerifyKey `json:"old_verify_keys"`
	ValidUntil    int64                   `json:"valid_until_ts"`
}

type verifyKey struct {
	Key string `json:"key"`
}

type oldVerifyKey struct {
	Key     string `json:"key"`
	Expired int64  `json:"expired_ts"`
}

// ServerKeys is our answer at /_matrix/key/v2/server, signed by every key that is in use.
//
// spec: s2s/getServerKey
func (k *Keys) ServerKeys(now time.Time) (json.RawMessage, error) {
	body := serverKeys{
		ServerName: k.ServerName, VerifyKeys: map[string]verifyKey{}, OldVerifyKeys: map[string]oldVerifyKey{},
		ValidUntil: now.Add(publishedFor).UnixMilli(),
	}
	for _, key := range k.Signing {
		body.VerifyKeys[key.ID] = verifyKey{encodeBase64(key.Public())}
	}
	for _, old := range k.Old {
		body.OldVerifyKeys[old.ID] = oldVerifyKey{encodeBase64(old.Public), old.Expired.UnixMilli()}
	}
	signed, err := json.Marshal(body)
	for _, key := range k.Signing {
		if err == nil {
			signed, err = SignJSON(k.ServerName, key, signed)
		}
	}
	return signed, err
}

// Notarise adds our signature to another server's key list, for /_matrix/key/v2/query.
//
// spec: s2s#querying-keys-through-another-server
func (k *Keys) Notarise(published json.RawMessage) (json.RawMessage, error) { return k.Sign(published) }
