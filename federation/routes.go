package federation

import (
	"slices"

	"chancery/endpoint"
)

// Words of the table.
const (
	none   = endpoint.None
	signed = endpoint.ServerSignature

	limitServer = endpoint.LimitServer
	limitNotary = endpoint.LimitNotary
)

func s2s(id, method, path string, auth endpoint.Auth, limit endpoint.LimitClass, h endpoint.Handler, more ...func(*endpoint.Route)) endpoint.Route {
	return endpoint.Row(endpoint.ServerServer, id, method, path, auth, limit, h, more...)
}

// Public are the rows for everybody: the client listener answers them too, for clients that show what software a
// server runs.
func (s *Server) Public() []endpoint.Route {
	return []endpoint.Route{
		// keys and version
		s2s("getServerKey", "GET", "/_matrix/key/v2/server", none, limitServer, endpoint.Handle(s.serverKeys), endpoint.Alias("/_matrix/key/v2/server/{keyId}")),
		s2s("perspectivesKeyQuery", "GET", "/_matrix/key/v2/query/{serverName}", none, limitNotary, endpoint.Handle(s.keysQuery)),
		s2s("bulkPerspectivesKeyQuery", "POST", "/_matrix/key/v2/query", none, limitNotary, endpoint.Handle(s.keysBatch)),
		s2s("getVersion", "GET", "/_matrix/federation/v1/version", none, limitServer, endpoint.Handle(s.version)),
	}
}

// Routes is the table of the server-server API. A test compares
// it with the OpenAPI of the spec in both directions; where the two differ on purpose,
// docs/spec-errata.md says why.
func (s *Server) Routes() []endpoint.Route {
	return slices.Concat(WellKnown(s.Config), s.Public(), []endpoint.Route{
		// transactions
		s2s("sendTransaction", "PUT", "/_matrix/federation/v1/send/{txnId}", signed, limitServer, endpoint.Handle(s.sendTransaction), endpoint.MaxBody(16<<20)),

		// joining, leaving, knocking, inviting
		s2s("makeJoin", "GET", "/_matrix/federation/v1/make_join/{roomId}/{userId}", signed, limitServer, endpoint.Handle(s.makeJoin)),
		s2s("sendJoinV2", "PUT", "/_matrix/federation/v2/send_join/{roomId}/{eventId}", signed, limitServer, endpoint.Handle(s.sendJoin), endpoint.LongPoll()),
		s2s("makeLeave", "GET", "/_matrix/federation/v1/make_leave/{roomId}/{userId}", signed, limitServer, endpoint.Handle(s.makeLeave)),
		s2s("sendLeaveV2", "PUT", "/_matrix/federation/v2/send_leave/{roomId}/{eventId}", signed, limitServer, endpoint.Handle(s.sendLeave)),
		s2s("makeKnock", "GET", "/_matrix/federation/v1/make_knock/{roomId}/{userId}", signed, limitServer, endpoint.Handle(s.makeKnock)),
		s2s("sendKnock", "PUT", "/_matrix/federation/v1/send_knock/{roomId}/{eventId}", signed, limitServer, endpoint.Handle(s.sendKnock)),
		s2s("sendInviteV1", "PUT", "/_matrix/federation/v1/invite/{roomId}/{eventId}", signed, limitServer, endpoint.Handle(s.inviteOld)),
		s2s("sendInviteV2", "PUT", "/_matrix/federation/v2/invite/{roomId}/{eventId}", signed, limitServer, endpoint.Handle(s.invite)),
		s2s("exchangeThirdPartyInvite", "PUT", "/_matrix/federation/v1/exchange_third_party_invite/{roomId}", signed, limitServer, endpoint.Handle(s.exchangeThirdPartyInvite)),
		s2s("onBindThirdPartyIdentifier", "PUT", "/_matrix/federation/v1/3pid/onbind", none, limitNotary, endpoint.Handle(s.onBind)),

		// events and state
		s2s("getRoomState", "GET", "/_matrix/federation/v1/state/{roomId}", signed, limitServer, endpoint.Handle(s.state), endpoint.LongPoll()),
		s2s("getRoomStateIds", "GET", "/_matrix/federation/v1/state_ids/{roomId}", signed, limitServer, endpoint.Handle(s.stateIDs), endpoint.LongPoll()),
		s2s("getEvent", "GET", "/_matrix/federation/v1/event/{eventId}", signed, limitServer, endpoint.Handle(s.event)),
		s2s("getEventByTimestamp", "GET", "/_matrix/federation/v1/timestamp_to_event/{roomId}", signed, limitServer, endpoint.Handle(s.eventByTimestamp)),
		s2s("getEventAuth", "GET", "/_matrix/federation/v1/event_auth/{roomId}/{eventId}", signed, limitServer, endpoint.Handle(s.eventAuth), endpoint.LongPoll()),
		s2s("backfillRoom", "GET", "/_matrix/federation/v1/backfill/{roomId}", signed, limitServer, endpoint.Handle(s.backfill)),
		s2s("getMissingPreviousEvents", "POST", "/_matrix/federation/v1/get_missing_events/{roomId}", signed, limitServer, endpoint.Handle(s.missingEvents)),
		s2s("getSpaceHierarchy", "GET", "/_matrix/federation/v1/hierarchy/{roomId}", signed, limitServer, endpoint.Handle(s.hierarchy)),
		s2s("getPublicRooms", "GET", "/_matrix/federation/v1/publicRooms", signed, limitServer, endpoint.Handle(s.publicRooms)),
		s2s("queryPublicRooms", "POST", "/_matrix/federation/v1/publicRooms", signed, limitServer, endpoint.Handle(s.queryPublicRooms)),

		// questions about users
		s2s("queryInfo", "GET", "/_matrix/federation/v1/query/{queryType}", signed, limitServer, endpoint.Handle(s.info)),
		s2s("queryRoomDirectory", "GET", "/_matrix/federation/v1/query/directory", signed, limitServer, endpoint.Handle(s.directory)),
		s2s("queryProfile", "GET", "/_matrix/federation/v1/query/profile", signed, limitServer, endpoint.Handle(s.profile)),
		s2s("getUserDevices", "GET", "/_matrix/federation/v1/user/devices/{userId}", signed, limitServer, endpoint.Handle(s.userDevices)),
		s2s("claimUserEncryptionKeys", "POST", "/_matrix/federation/v1/user/keys/claim", signed, limitServer, endpoint.Handle(s.keysClaim)),
		s2s("queryUserEncryptionKeys", "POST", "/_matrix/federation/v1/user/keys/query", signed, limitServer, endpoint.Handle(s.userKeys)),
		s2s("exchangeOpenIdToken", "GET", "/_matrix/federation/v1/openid/userinfo", none, limitServer, endpoint.Handle(s.openID)),

		// media
		s2s("getContent", "GET", "/_matrix/federation/v1/media/download/{mediaId}", signed, limitServer, endpoint.Raw(s.mediaDownload), endpoint.LongPoll()),
		s2s("getContentThumbnail", "GET", "/_matrix/federation/v1/media/thumbnail/{mediaId}", signed, limitServer, endpoint.Raw(s.mediaThumbnail)),

		// policy
		s2s("askPolicyServerToSign", "POST", "/_matrix/policy/v1/sign", signed, limitServer, endpoint.Handle(s.policySign)),
	})
}
