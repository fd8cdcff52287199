// Package device is an encrypting client for tests: mautrix-go with the Go implementation of Olm, which is
// chosen by the build tag goolm.
package device
