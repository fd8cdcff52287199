package sql

// FactKind says what a fact tells. Values are stored: never change one, only add.
type FactKind int16

const (
	FactEpoch         FactKind = 1  // a new epoch begins: first start, or after a restore
	FactEvent         FactKind = 2  // an event was appended to a room (Room, Event, Ord, Root)
	FactState         FactKind = 3  // a room's state moved without an event (Room, Root)
	FactHistory       FactKind = 4  // an event was added below the newest: backfill, a filled gap, soft-failed (Room, Event, Ord)
	FactInvite        FactKind = 5  // User was invited to, or knocked on, a room we are not in, or that ended (Extra: membership, room ID)
	FactRoomComplete  FactKind = 6  // a partial join is complete, or given up (Room, Root)
	FactRedaction     FactKind = 7  // a redaction took effect on Event (Room, Event)
	FactPurge         FactKind = 8  // a room was purged (Room)
	FactToDevice      FactKind = 9  // a to-device message waits for User's Device ("" all)
	FactDeviceList    FactKind = 10 // User's devices or keys changed
	FactAccountData   FactKind = 11 // User's account data changed (Room 0: global; Extra: the type)
	FactReceipt       FactKind = 12 // User's receipt in Room moved (Extra: type, thread)
	FactProfile       FactKind = 13 // User's profile changed
	FactOneTimeKeys   FactKind = 14 // User's Device used up or uploaded one-time keys
	FactOutgoing      FactKind = 15 // something waits in the outbox for a destination (Extra: the destination)
	FactRoomDirectory FactKind = 16 // a room was published, unpublished or re-aliased (Room)
	FactAccount       FactKind = 17 // User's tokens, or what User may do, changed: forget what is known of them
	FactReplaced      FactKind = 18 // a room says that another replaces it (Room, Event)
)

// Fact is something that happened, as the log tells it. It names things, it carries no bodies:
// an event's JSON comes from memory or from SQL, so retention and erasure need not reach into the log.
type Fact struct {
	Pos    int64    `json:"p"` // given by the commit, in commit order, unique, ascending
	Kind   FactKind `json:"k"`
	Room   int64    `json:"r,omitempty"` // room number
	Event  int64    `json:"e,omitempty"` // event number
	Ord    int64    `json:"o,omitempty"` // the event's place in its room
	Root   int64    `json:"s,omitempty"` // root of the room's state after the fact
	User   string   `json:"u,omitempty"` // whom it is about: the receiver, the owner, the member of a membership event
	Device string   `json:"d,omitempty"`
	Extra  string   `json:"x,omitempty"` // small JSON, by kind
}
