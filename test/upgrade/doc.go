// Package upgrade tests on whole servers what follows when a room is replaced by another.
package upgrade
