package users

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"

	"chancery"
)

// A longer password is no better, only more work.
const maxPassword = 512

// cost is how dear a guess at a password is.
type cost struct {
	memory  uint32 // KiB
	passes  uint32
	threads uint8
}

var (
	normalCost = cost{memory: 19 << 10, passes: 2, threads: 1} // the least that OWASP recommends: logins are many
	lowCost    = cost{memory: 8, passes: 1, threads: 1}        // for tests
)

// What a stored hash may ask of us at most: a hash from a broken or foreign row must not
// take the server's memory.
var maxCost = cost{memory: 1 << 20, passes: 16, threads: 16}

const (
	saltBytes = 16
	hashBytes = 32
)

// passwords hashes with bounded work: each hash takes a processor and normalCost.memory.
type passwords struct {
	cost    cost
	workers chan struct{}
	waiting atomic.Int64
	nobody  string // hash for users who are not there
}

// More waiting than this would be answered when nobody waits for them any more.
const maxWaiting = 256

func newPasswords(low bool) *passwords {
	p := &passwords{cost: normalCost, workers: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)))}
	if low {
		p.cost = lowCost
	}
	// No password has this hash: it only costs what a real one costs.
	p.nobody = p.cost.format(random(saltBytes), random(hashBytes))
	return p
}

// checkPassword says whether a password may be chosen.
func checkPassword(password string) error {
	switch {
	case password == "":
		return chancery.Errorf(http.StatusBadRequest, chancery.CodeWeakPassword, "the password is empty")
	case len(password) > maxPassword:
		return chancery.InvalidParam("the password is longer than %d bytes", maxPassword)
	}
	return nil
}

// hash makes the PHC string of a password.
func (p *passwords) hash(ctx context.Context, password string) (string, error) {
	salt := random(saltBytes)
	sum, err := p.work(ctx, password, salt, p.cost, hashBytes)
	if err != nil {
		return "", err
	}
	return p.cost.format(salt, sum), nil
}

// check compares a password with a PHC string, in the same time whether it is right or not
// and whether there is such a user (stored is "") or not. dated says that the hash was made
// at another cost than today's.
func (p *passwords) check(ctx context.Context, stored, password string) (right, dated bool, err error) {
	if len(password) > maxPassword {
		return false, false, nil
	}
	known := stored != ""
	if !known {
		stored = p.nobody
	}
	c, salt, want, err := parsePHC(stored)
	if err != nil {
		return false, false, err
	}
	got, err := p.work(ctx, password, salt, c, len(want))
	if err != nil {
		return false, false, err
	}
	right = subtle.ConstantTimeCompare(got, want) == 1 && known
	return right, c != p.cost, nil
}

func (p *passwords) work(ctx context.Context, password string, salt []byte, c cost, size int) ([]byte, error) {
	if p.waiting.Add(1) > maxWaiting {
		p.waiting.Add(-1)
		return nil, chancery.LimitExceeded(5 * time.Second)
	}
	defer p.waiting.Add(-1)
	select {
	case p.workers <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-p.workers }()
	return argon2.IDKey([]byte(password), salt, c.passes, c.memory, c.threads, uint32(size)), nil
}

var phcBase64 = base64.RawStdEncoding

func (c cost) format(salt, sum []byte) string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, c.memory, c.passes, c.threads,
		phcBase64.EncodeToString(salt), phcBase64.EncodeToString(sum))
}

func parsePHC(s string) (c cost, salt, sum []byte, err error) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return c, nil, nil, errors.New("a stored password is not in a form this server knows")
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &c.memory, &c.passes, &c.threads); err != nil {
		return c, nil, nil, fmt.Errorf("read the cost of a stored password: %w", err)
	}
	if c.memory > maxCost.memory || c.passes < 1 || c.passes > maxCost.passes || c.threads < 1 || c.threads > maxCost.threads {
		return c, nil, nil, errors.New("a stored password asks for more work than this server gives")
	}
	if salt, err = phcBase64.DecodeString(parts[4]); err != nil {
		return c, nil, nil, fmt.Errorf("read the salt of a stored password: %w", err)
	}
	if sum, err = phcBase64.DecodeString(parts[5]); err != nil || len(sum) < 16 || len(sum) > 64 {
		return c, nil, nil, errors.New("a stored password has no hash")
	}
	return c, salt, sum, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails: the runtime ends the process instead
	return b
}
