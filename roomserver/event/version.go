package event

// Version is one room version as data: what differs between versions is a field here and
// nowhere an if on a number. Versions are shared and must not be changed.
//
// spec: rooms/v1 to rooms/v12
type Version struct {
	Name   string
	Stable bool

	// EventFormat is FormatReferences where events carry their ID and name others as
	// [id, {hash}] pairs, and FormatIDs where they name others by ID alone.
	// spec: rooms/v1#event-format, rooms/v3#event-format
	EventFormat EventFormat
	// EventIDFormat says how an event gets its ID.
	// spec: rooms/v1#event-ids, rooms/v3#event-ids, rooms/v4#event-ids
	EventIDFormat EventIDFormat
	// StateResolution is the algorithm that merges forks of the state.
	// spec: rooms/v1#state-resolution, rooms/v2#state-resolution, rooms/v12#state-resolution
	StateResolution StateResolution
	// Redaction lists what survives a redaction.
	// spec: rooms/v1#redactions, rooms/v6, v8, v9, v11
	Redaction *Redaction

	// StrictCanonicalJSON refuses events with floats or integers outside of ±(2^53 - 1).
	// spec: rooms/v6#canonical-json
	StrictCanonicalJSON bool
	// ByteLimits counts the limits of single fields in bytes. Older rooms hold events that other servers took
	// with 255 code points: without them their history has holes that nothing can fill.
	ByteLimits bool
	// EnforceKeyValidity wants a signing key to be valid at the event's origin_server_ts.
	// spec: rooms/v5#signing-key-validity-period
	EnforceKeyValidity bool
	// RedactionAuthRule makes redactions part of the authorisation rules.
	// spec: rooms/v1#authorisation-rules 11; gone since rooms/v3#handling-redactions
	RedactionAuthRule bool
	// SpecialCaseAliases gives m.room.aliases its own authorisation rule.
	// spec: rooms/v1#authorisation-rules 4; gone since rooms/v6#authorisation-rules
	SpecialCaseAliases bool
	// LimitNotificationsPL puts the notifications of m.room.power_levels under the rules for events.
	// spec: rooms/v6#authorisation-rules
	LimitNotificationsPL bool
	// Knock knows the membership and the join rule knock.
	// spec: rooms/v7#authorisation-rules
	Knock bool
	// Restricted knows the join rule restricted and join_authorised_via_users_server.
	// spec: rooms/v8#authorisation-rules
	Restricted bool
	// KnockRestricted knows the join rule knock_restricted.
	// spec: rooms/v10#authorisation-rules
	KnockRestricted bool
	// IntegerPowerLevels refuses power levels that are written as strings.
	// spec: rooms/v10#values-in-mroompower_levels-events-must-be-integers
	IntegerPowerLevels bool
	// CreatorFromSender takes the creator from the sender of m.room.create, not from content.creator.
	// spec: rooms/v11#remove-the-creator-property-of-mroomcreate-events
	CreatorFromSender bool
	// RedactsInContent moves redacts of m.room.redaction from the top level into content.
	// spec: rooms/v11#moving-the-redacts-property-of-mroomredaction-events-to-a-content-property
	RedactsInContent bool
	// PrivilegedCreators puts the creators above every power level.
	// spec: rooms/v12#authorisation-rules
	PrivilegedCreators bool
	// RoomIDIsCreateHash makes the room ID the ID of the create event, which itself has no room_id.
	// spec: rooms/v12#event-format, appendices#room-ids
	RoomIDIsCreateHash bool
	// CreateNotInAuthEvents keeps m.room.create out of auth_events: the room ID implies it.
	// spec: rooms/v12#authorisation-rules 3.2
	CreateNotInAuthEvents bool
}

// EventFormat is the form of the references to other events.
type EventFormat int

const (
	FormatReferences EventFormat = 1 // [["$id:domain", {"sha256": ...}], ...], and event_id in the event
	FormatIDs        EventFormat = 2 // ["$id", ...]
)

// EventIDFormat says how an event gets its ID.
type EventIDFormat int

const (
	IDFromSender EventIDFormat = 1 // event_id of the event: $opaque:domain
	IDBase64     EventIDFormat = 2 // reference hash, unpadded base64
	IDURLSafe    EventIDFormat = 3 // reference hash, URL-safe unpadded base64
)

// StateResolution names an algorithm.
type StateResolution int

const (
	StateV1  StateResolution = 1 // rooms/v1
	StateV2  StateResolution = 2 // rooms/v2
	StateV21 StateResolution = 3 // rooms/v12, called 2.1
)

func (v Version) with(name string, change func(*Version)) *Version {
	v.Name = name
	change(&v)
	return &v
}

var (
	v1 = &Version{
		Name:               "1",
		Stable:             true,
		EventFormat:        FormatReferences,
		EventIDFormat:      IDFromSender,
		StateResolution:    StateV1,
		Redaction:          redactV1,
		RedactionAuthRule:  true,
		SpecialCaseAliases: true,
	}
	v2 = v1.with("2", func(v *Version) { v.StateResolution = StateV2 })
	v3 = v2.with("3", func(v *Version) {
		v.EventFormat = FormatIDs
		v.EventIDFormat = IDBase64
		v.RedactionAuthRule = false
	})
	v4 = v3.with("4", func(v *Version) { v.EventIDFormat = IDURLSafe })
	v5 = v4.with("5", func(v *Version) { v.EnforceKeyValidity = true })
	v6 = v5.with("6", func(v *Version) {
		v.StrictCanonicalJSON = true
		v.SpecialCaseAliases = false
		v.LimitNotificationsPL = true
		v.Redaction = redactV6
	})
	v7 = v6.with("7", func(v *Version) { v.Knock = true })
	v8 = v7.with("8", func(v *Version) {
		v.Restricted = true
		v.Redaction = redactV8
	})
	v9  = v8.with("9", func(v *Version) { v.Redaction = redactV9 })
	v10 = v9.with("10", func(v *Version) {
		v.KnockRestricted = true
		v.IntegerPowerLevels = true
	})
	v11 = v10.with("11", func(v *Version) {
		v.CreatorFromSender = true
		v.RedactsInContent = true
		v.ByteLimits = true
		v.Redaction = redactV11
	})
	v12 = v11.with("12", func(v *Version) {
		v.StateResolution = StateV21
		v.PrivilegedCreators = true
		v.RoomIDIsCreateHash = true
		v.CreateNotInAuthEvents = true
	})

	versions = []*Version{v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12}
)

// Lookup finds a room version by its name.
func Lookup(name string) (*Version, bool) {
	for _, v := range versions {
		if v.Name == name {
			return v, true
		}
	}
	return nil, false
}

// Versions lists all known room versions, oldest first.
func Versions() []*Version { return append([]*Version(nil), versions...) }
