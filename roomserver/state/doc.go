// Package state holds what the state of a room is and how it comes about: the persistent
// array from slot to event number, the chain cover that answers "is x in y's auth chain",
// and state resolution. It is pure: it reads through small interfaces, stores nothing
// itself and knows nothing of SQL, HTTP or other rooms.
//
// A slot is the small number that a (type, state key) pair of a room gets when it is first
// seen. An event number (nid) of 0 means that there is no event.
package state

import "errors"

var (
	// ErrMissing says that a node or an event that must exist is not stored: the room was purged.
	ErrMissing = errors.New("state: not stored")
	// ErrCorrupt says that stored bytes are not what we wrote.
	ErrCorrupt = errors.New("state: corrupt")
	// ErrBudget says that a walk would touch more than its budget allows. The event that
	// asked for it is refused and the server goes on.
	ErrBudget = errors.New("state: over the budget")
)
