// Package auth holds the authorisation rules of rooms: whether an event may be in a room, given
// the state that authorises it. It is a pure function of events; it neither stores, fetches nor
// verifies the signatures of servers.
//
// Each room version's rules stand in tables.go as the list that the specification prints, one
// function per numbered rule; a rejection carries the number as in the rendered list.
//
// A received event is asked about up to four times: CheckAuthEvents for the list of its auth
// events, then Check against those, against the state before it, and against the current state.
//
// spec: s2s#authorisation-rules
package auth
