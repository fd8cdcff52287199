// Package identity tests on a whole server that somebody is invited by an address that an identity server knows.
package identity
