// Package e2e proves the first promise of the house: users of two servers, each with an unmodified Matrix
// client, hold one encrypted conversation, and nothing of it is lost when a server is killed in between.
//
// The clients are mautrix-go with the Go implementation of Olm, which is chosen by the build tag goolm. Without
// the tag the test of this package runs `go test -tags goolm` on itself.
package e2e
