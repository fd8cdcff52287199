// Package chancery is the house in one page: a Matrix homeserver for governments.
//
// Ask with a call, tell with a fact. A component asks another with a request and gets an
// answer; what has happened is told once, as a fact with a position in storage, and whoever
// needs it reads it from the log.
//
//	cmd/chancery   the binary
//	config         what an operator may set
//	recent         what was used lately, bounded in bytes
//	storage        everything durable: SQL on two engines, the log of facts, media bytes
//	roomserver     the room engine, the one writer of rooms
//	users          devices, keys, profiles, receipts: the one writer of what belongs to a person
//	media          files: uploads, fetches, thumbnails
//	federation     the server-server API and the outbox; federation/peer is the way out
//	clientapi      the client-server API but sync; routes.go is the table
//	syncapi        /sync and the notifier
//
// This package holds what all of them share: the one error type. It imports nothing of ours.
package chancery
