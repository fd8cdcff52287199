package eventlog

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A disk fails in more ways than one can name: files cut anywhere, single bytes turned, files
// missing. None of it may keep the server from starting, nor a fact from its readers.
func TestStreamFilesAreDamagedAtRandom(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "log")
	source := newLedger()
	n := embedded(t, whole)
	l := open(t, n, source, Options{})
	for range 200 {
		l.Publish(source.commit(10))
	}
	l.Close()
	n.Close()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 3))
			dir := filepath.Join(t.TempDir(), "log")
			must(t, os.CopyFS(dir, os.DirFS(whole)))
			must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				return spoil(random, path)
			}))
			n := embedded(t, dir)
			l := open(t, n, source, Options{Poll: 100 * time.Millisecond, Warm: 1, ReplayAbove: 10})
			w := read(t, l, 0)
			l.Publish(source.commit(10))
			w.wants(t, source.all(0))
			l.Close()
			n.Close()
		})
	}
}

func spoil(random *rand.Rand, path string) error {
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return err
	}
	switch random.IntN(4) {
	case 0:
		return os.Remove(path)
	case 1:
		b = b[:random.IntN(len(b))]
	case 2:
		for range 1 + random.IntN(8) {
			b[random.IntN(len(b))] ^= byte(1 + random.IntN(255))
		}
	}
	return os.WriteFile(path, b, 0o600)
}
