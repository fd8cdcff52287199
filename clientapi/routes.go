package clientapi

import (
	"slices"

	"chancery/endpoint"
)

// Words of the table.
const (
	none        = endpoint.None
	optional    = endpoint.Optional
	user        = endpoint.User
	userOrGuest = endpoint.UserOrGuest
	appService  = endpoint.AppService

	unlimited     = endpoint.Unlimited
	limitRead     = endpoint.LimitRead
	limitSend     = endpoint.LimitSend
	limitWrite    = endpoint.LimitWrite
	limitJoin     = endpoint.LimitJoin
	limitLogin    = endpoint.LimitLogin
	limitRegister = endpoint.LimitRegister
	limitSearch   = endpoint.LimitSearch
	limitMedia    = endpoint.LimitMedia
	limitKeys     = endpoint.LimitKeys
)

var (
	planned = endpoint.Planned()
	nobody  = endpoint.Handler{} // the row's method and path are answered by another row
)

func c2s(id, method, path string, auth endpoint.Auth, limit endpoint.LimitClass, h endpoint.Handler, more ...func(*endpoint.Route)) endpoint.Route {
	return endpoint.Row(endpoint.ClientServer, id, method, path, auth, limit, h, more...)
}

// Routes is THE TABLE: every operation of the client-server API, those not built yet as planned.
// A test compares it with the OpenAPI of the spec in both directions; where the two differ on
// purpose, docs/spec-errata.md says why.
func (s *Server) Routes() []endpoint.Route {
	s.makeParts()
	return slices.Concat(WellKnown(s.Config, s.Rooms.PolicyKey), []endpoint.Route{
		// what this server can do
		c2s("getVersions", "GET", "/_matrix/client/versions", optional, limitRead, endpoint.Handle(s.versions)),
		c2s("getCapabilities", "GET", "/_matrix/client/v3/capabilities", userOrGuest, limitRead, endpoint.Handle(s.account.Capabilities)),
		c2s("getAuthMetadata", "GET", "/_matrix/client/v1/auth_metadata", none, unlimited, planned, endpoint.Alias("/_matrix/client/unstable/org.matrix.msc2965/auth_metadata")),
		c2s("getTurnServer", "GET", "/_matrix/client/v3/voip/turnServer", user, limitRead, endpoint.Handle(s.account.TurnServer)),

		// signing in and out
		c2s("getLoginFlows", "GET", "/_matrix/client/v3/login", none, limitLogin, endpoint.Handle(s.account.LoginFlows)),
		c2s("login", "POST", "/_matrix/client/v3/login", none, limitLogin, endpoint.Handle(s.account.Login)),
		c2s("generateLoginToken", "POST", "/_matrix/client/v1/login/get_token", user, limitLogin, endpoint.Handle(s.account.LoginToken)),
		c2s("refresh", "POST", "/_matrix/client/v3/refresh", none, limitLogin, endpoint.Handle(s.account.Refresh)),
		c2s("logout", "POST", "/_matrix/client/v3/logout", userOrGuest, limitWrite, endpoint.Handle(s.account.Logout)),
		c2s("logout_all", "POST", "/_matrix/client/v3/logout/all", userOrGuest, limitWrite, endpoint.Handle(s.account.LogoutAll)),
		c2s("redirectToSSO", "GET", "/_matrix/client/v3/login/sso/redirect", none, unlimited, planned),
		c2s("redirectToIdP", "GET", "/_matrix/client/v3/login/sso/redirect/{idpId}", none, unlimited, planned),
		c2s("getTokenOwner", "GET", "/_matrix/client/v3/account/whoami", userOrGuest, limitRead, endpoint.Handle(s.account.WhoAmI)),

		// the account
		c2s("register", "POST", "/_matrix/client/v3/register", none, limitRegister, endpoint.Handle(s.account.Register)),
		c2s("requestTokenToRegisterEmail", "POST", "/_matrix/client/v3/register/email/requestToken", none, limitRegister, planned),
		c2s("requestTokenToRegisterMSISDN", "POST", "/_matrix/client/v3/register/msisdn/requestToken", none, limitRegister, planned),
		c2s("checkUsernameAvailability", "GET", "/_matrix/client/v3/register/available", none, limitRegister, endpoint.Handle(s.account.Available)),
		c2s("registrationTokenValidity", "GET", "/_matrix/client/v1/register/m.login.registration_token/validity", none, limitRegister, endpoint.Handle(s.account.TokenValidity)),
		c2s("changePassword", "POST", "/_matrix/client/v3/account/password", optional, limitLogin, endpoint.Handle(s.account.ChangePassword)),
		c2s("requestTokenToResetPasswordEmail", "POST", "/_matrix/client/v3/account/password/email/requestToken", none, limitRegister, planned),
		c2s("requestTokenToResetPasswordMSISDN", "POST", "/_matrix/client/v3/account/password/msisdn/requestToken", none, limitRegister, planned),
		c2s("deactivateAccount", "POST", "/_matrix/client/v3/account/deactivate", optional, limitLogin, endpoint.Handle(s.account.Deactivate)),
		c2s("getAccount3PIDs", "GET", "/_matrix/client/v3/account/3pid", user, limitRead, endpoint.Handle(s.account.Contacts)),
		c2s("post3PIDs", "POST", "/_matrix/client/v3/account/3pid", user, limitWrite, planned),
		c2s("add3PID", "POST", "/_matrix/client/v3/account/3pid/add", user, limitLogin, planned),
		c2s("bind3PID", "POST", "/_matrix/client/v3/account/3pid/bind", user, limitLogin, planned),
		c2s("delete3pidFromAccount", "POST", "/_matrix/client/v3/account/3pid/delete", user, limitWrite, planned),
		c2s("unbind3pidFromAccount", "POST", "/_matrix/client/v3/account/3pid/unbind", user, limitWrite, planned),
		c2s("requestTokenTo3PIDEmail", "POST", "/_matrix/client/v3/account/3pid/email/requestToken", none, limitRegister, planned),
		c2s("requestTokenTo3PIDMSISDN", "POST", "/_matrix/client/v3/account/3pid/msisdn/requestToken", none, limitRegister, planned),
		c2s("requestOpenIdToken", "POST", "/_matrix/client/v3/user/{userId}/openid/request_token", user, limitWrite, endpoint.Handle(s.account.OpenIDToken)),

		// devices and end-to-end keys
		c2s("getDevices", "GET", "/_matrix/client/v3/devices", userOrGuest, limitRead, endpoint.Handle(s.device.List)),
		c2s("getDevice", "GET", "/_matrix/client/v3/devices/{deviceId}", userOrGuest, limitRead, endpoint.Handle(s.device.Get)),
		c2s("updateDevice", "PUT", "/_matrix/client/v3/devices/{deviceId}", userOrGuest, limitWrite, endpoint.Handle(s.device.Update)),
		c2s("deleteDevice", "DELETE", "/_matrix/client/v3/devices/{deviceId}", user, limitWrite, endpoint.Handle(s.device.Delete)),
		c2s("deleteDevices", "POST", "/_matrix/client/v3/delete_devices", user, limitWrite, endpoint.Handle(s.device.DeleteMany)),
		c2s("uploadKeys", "POST", "/_matrix/client/v3/keys/upload", userOrGuest, limitKeys, endpoint.Handle(s.keys.Upload), endpoint.MaxBody(8<<20)),
		c2s("queryKeys", "POST", "/_matrix/client/v3/keys/query", userOrGuest, limitKeys, endpoint.Handle(s.keys.Query)),
		c2s("claimKeys", "POST", "/_matrix/client/v3/keys/claim", userOrGuest, limitKeys, endpoint.Handle(s.keys.Claim)),
		c2s("getKeysChanges", "GET", "/_matrix/client/v3/keys/changes", user, limitRead, endpoint.Handle(s.keys.Changes)),
		c2s("uploadCrossSigningKeys", "POST", "/_matrix/client/v3/keys/device_signing/upload", user, limitKeys, endpoint.Handle(s.keys.UploadSigning), endpoint.Alias("/_matrix/client/unstable/keys/device_signing/upload")),
		c2s("uploadCrossSigningSignatures", "POST", "/_matrix/client/v3/keys/signatures/upload", user, limitKeys, endpoint.Handle(s.keys.UploadSignatures), endpoint.MaxBody(8<<20), endpoint.Alias("/_matrix/client/unstable/keys/signatures/upload")),
		c2s("postRoomKeysVersion", "POST", "/_matrix/client/v3/room_keys/version", user, limitKeys, endpoint.Handle(s.keys.NewBackup), endpoint.Alias("/_matrix/client/unstable/room_keys/version")),
		c2s("getRoomKeysVersionCurrent", "GET", "/_matrix/client/v3/room_keys/version", user, limitKeys, endpoint.Handle(s.keys.CurrentBackup), endpoint.Alias("/_matrix/client/unstable/room_keys/version")),
		c2s("getRoomKeysVersion", "GET", "/_matrix/client/v3/room_keys/version/{version}", user, limitKeys, endpoint.Handle(s.keys.Backup), endpoint.Alias("/_matrix/client/unstable/room_keys/version/{version}")),
		c2s("putRoomKeysVersion", "PUT", "/_matrix/client/v3/room_keys/version/{version}", user, limitKeys, endpoint.Handle(s.keys.UpdateBackup), endpoint.Alias("/_matrix/client/unstable/room_keys/version/{version}")),
		c2s("deleteRoomKeysVersion", "DELETE", "/_matrix/client/v3/room_keys/version/{version}", user, limitKeys, endpoint.Handle(s.keys.DeleteBackup), endpoint.Alias("/_matrix/client/unstable/room_keys/version/{version}")),
		c2s("putRoomKeyBySessionId", "PUT", "/_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}", user, limitKeys, endpoint.Handle(s.keys.PutSession), endpoint.Alias("/_matrix/client/unstable/room_keys/keys/{roomId}/{sessionId}")),
		c2s("getRoomKeyBySessionId", "GET", "/_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}", user, limitKeys, endpoint.Handle(s.keys.GetSession), endpoint.Alias("/_matrix/client/unstable/room_keys/keys/{roomId}/{sessionId}")),
		c2s("deleteRoomKeyBySessionId", "DELETE", "/_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}", user, limitKeys, endpoint.Handle(s.keys.DeleteSession), endpoint.Alias("/_matrix/client/unstable/room_keys/keys/{roomId}/{sessionId}")),
		c2s("putRoomKeysByRoomId", "PUT", "/_matrix/client/v3/room_keys/keys/{roomId}", user, limitKeys, endpoint.Handle(s.keys.PutRoom), endpoint.MaxBody(16<<20), endpoint.Alias("/_matrix/client/unstable/room_keys/keys/{roomId}")),
		c2s("getRoomKeysByRoomId", "GET", "/_matrix/client/v3/room_keys/keys/{roomId}", user, limitKeys, endpoint.Handle(s.keys.GetRoom), endpoint.Alias("/_matrix/client/unstable/room_keys/keys/{roomId}")),
		c2s("deleteRoomKeysByRoomId", "DELETE", "/_matrix/client/v3/room_keys/keys/{roomId}", user, limitKeys, endpoint.Handle(s.keys.DeleteRoom), endpoint.Alias("/_matrix/client/unstable/room_keys/keys/{roomId}")),
		c2s("putRoomKeys", "PUT", "/_matrix/client/v3/room_keys/keys", user, limitKeys, endpoint.Handle(s.keys.PutAll), endpoint.MaxBody(16<<20), endpoint.Alias("/_matrix/client/unstable/room_keys/keys")),
		c2s("getRoomKeys", "GET", "/_matrix/client/v3/room_keys/keys", user, limitKeys, endpoint.Handle(s.keys.GetAll), endpoint.Alias("/_matrix/client/unstable/room_keys/keys")),
		c2s("deleteRoomKeys", "DELETE", "/_matrix/client/v3/room_keys/keys", user, limitKeys, endpoint.Handle(s.keys.DeleteAll), endpoint.Alias("/_matrix/client/unstable/room_keys/keys")),
		c2s("sendToDevice", "PUT", "/_matrix/client/v3/sendToDevice/{eventType}/{txnId}", userOrGuest, limitKeys, endpoint.Handle(s.keys.Send), endpoint.MaxBody(8<<20)),

		// profile, presence and what a user keeps here
		c2s("setProfileField", "PUT", "/_matrix/client/v3/profile/{userId}/{keyName}", userOrGuest, limitWrite, endpoint.Handle(s.profile.SetField)),
		c2s("getProfileField", "GET", "/_matrix/client/v3/profile/{userId}/{keyName}", none, limitRead, endpoint.Handle(s.profile.Field)),
		c2s("deleteProfileField", "DELETE", "/_matrix/client/v3/profile/{userId}/{keyName}", userOrGuest, limitWrite, endpoint.Handle(s.profile.DeleteField)),
		c2s("getUserProfile", "GET", "/_matrix/client/v3/profile/{userId}", none, limitRead, endpoint.Handle(s.profile.Profile)),
		c2s("setPresence", "PUT", "/_matrix/client/v3/presence/{userId}/status", user, limitWrite, endpoint.Handle(s.presence.Set)),
		c2s("getPresence", "GET", "/_matrix/client/v3/presence/{userId}/status", user, limitRead, endpoint.Handle(s.presence.Get)),
		c2s("setAccountData", "PUT", "/_matrix/client/v3/user/{userId}/account_data/{type}", user, limitWrite, endpoint.Handle(s.accountdata.Set)),
		c2s("getAccountData", "GET", "/_matrix/client/v3/user/{userId}/account_data/{type}", user, limitRead, endpoint.Handle(s.accountdata.Get)),
		c2s("setAccountDataPerRoom", "PUT", "/_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}", user, limitWrite, endpoint.Handle(s.accountdata.SetInRoom)),
		c2s("getAccountDataPerRoom", "GET", "/_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}", user, limitRead, endpoint.Handle(s.accountdata.GetInRoom)),
		c2s("getRoomTags", "GET", "/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags", user, limitRead, endpoint.Handle(s.accountdata.Tags)),
		c2s("setRoomTag", "PUT", "/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}", user, limitWrite, endpoint.Handle(s.accountdata.SetTag)),
		c2s("deleteRoomTag", "DELETE", "/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}", user, limitWrite, endpoint.Handle(s.accountdata.DeleteTag)),
		c2s("defineFilter", "POST", "/_matrix/client/v3/user/{userId}/filter", userOrGuest, limitWrite, endpoint.Handle(s.accountdata.DefineFilter)),
		c2s("getFilter", "GET", "/_matrix/client/v3/user/{userId}/filter/{filterId}", userOrGuest, limitRead, endpoint.Handle(s.accountdata.Filter)),
		c2s("searchUserDirectory", "POST", "/_matrix/client/v3/user_directory/search", user, limitSearch, endpoint.Handle(s.userdirectory.Search)),
		c2s("getMutualRooms", "GET", "/_matrix/client/v1/mutual_rooms", user, limitSearch, endpoint.Handle(s.userdirectory.Mutual)),

		// rooms: making, entering, leaving
		c2s("createRoom", "POST", "/_matrix/client/v3/createRoom", user, limitJoin, endpoint.Handle(s.room.CreateRoom)),
		c2s("upgradeRoom", "POST", "/_matrix/client/v3/rooms/{roomId}/upgrade", user, limitJoin, endpoint.Handle(s.room.UpgradeRoom)),
		c2s("joinRoomById", "POST", "/_matrix/client/v3/rooms/{roomId}/join", userOrGuest, limitJoin, endpoint.Handle(s.room.JoinRoomByID)),
		c2s("joinRoom", "POST", "/_matrix/client/v3/join/{roomIdOrAlias}", userOrGuest, limitJoin, endpoint.Handle(s.room.JoinRoom)),
		c2s("knockRoom", "POST", "/_matrix/client/v3/knock/{roomIdOrAlias}", user, limitJoin, endpoint.Handle(s.room.KnockRoom)),
		c2s("inviteUser", "POST", "/_matrix/client/v3/rooms/{roomId}/invite", user, limitJoin, endpoint.Handle(s.room.InviteUser)),
		c2s("inviteBy3PID", "POST", "/_matrix/client/v3/rooms/{roomId}/invite", user, limitWrite, nobody, endpoint.AnsweredBy("inviteUser")),
		c2s("leaveRoom", "POST", "/_matrix/client/v3/rooms/{roomId}/leave", userOrGuest, limitWrite, endpoint.Handle(s.room.LeaveRoom)),
		c2s("forgetRoom", "POST", "/_matrix/client/v3/rooms/{roomId}/forget", user, limitWrite, endpoint.Handle(s.room.ForgetRoom)),
		c2s("kick", "POST", "/_matrix/client/v3/rooms/{roomId}/kick", user, limitWrite, endpoint.Handle(s.room.Kick)),
		c2s("ban", "POST", "/_matrix/client/v3/rooms/{roomId}/ban", user, limitWrite, endpoint.Handle(s.room.Ban)),
		c2s("unban", "POST", "/_matrix/client/v3/rooms/{roomId}/unban", user, limitWrite, endpoint.Handle(s.room.Unban)),
		c2s("getJoinedRooms", "GET", "/_matrix/client/v3/joined_rooms", user, limitRead, endpoint.Handle(s.room.GetJoinedRooms)),

		// rooms: writing and reading
		c2s("sendMessage", "PUT", "/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}", userOrGuest, limitSend, endpoint.Handle(s.room.SendMessage)),
		c2s("setRoomStateWithKey", "PUT", "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}", userOrGuest, limitSend, endpoint.Handle(s.room.SetState), endpoint.Alias("/_matrix/client/v3/rooms/{roomId}/state/{eventType}")),
		c2s("redactEvent", "PUT", "/_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}", user, limitSend, endpoint.Handle(s.room.RedactEvent)),
		c2s("getOneRoomEvent", "GET", "/_matrix/client/v3/rooms/{roomId}/event/{eventId}", userOrGuest, limitRead, endpoint.Handle(s.room.GetEvent)),
		c2s("getRoomStateWithKey", "GET", "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}", userOrGuest, limitRead, endpoint.Handle(s.room.GetStateEvent), endpoint.Alias("/_matrix/client/v3/rooms/{roomId}/state/{eventType}")),
		c2s("getRoomState", "GET", "/_matrix/client/v3/rooms/{roomId}/state", userOrGuest, limitRead, endpoint.Handle(s.room.GetState)),
		c2s("getMembersByRoom", "GET", "/_matrix/client/v3/rooms/{roomId}/members", userOrGuest, limitRead, endpoint.Handle(s.room.GetMembers)),
		c2s("getJoinedMembersByRoom", "GET", "/_matrix/client/v3/rooms/{roomId}/joined_members", user, limitRead, endpoint.Handle(s.room.GetJoinedMembers)),
		c2s("getRoomEvents", "GET", "/_matrix/client/v3/rooms/{roomId}/messages", userOrGuest, limitRead, endpoint.Handle(s.room.GetMessages)),
		c2s("getEventContext", "GET", "/_matrix/client/v3/rooms/{roomId}/context/{eventId}", userOrGuest, limitRead, endpoint.Handle(s.room.GetContext)),
		c2s("getRelatingEvents", "GET", "/_matrix/client/v1/rooms/{roomId}/relations/{eventId}", user, limitRead, endpoint.Handle(s.room.GetRelatingEvents)),
		c2s("getRelatingEventsWithRelType", "GET", "/_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}", user, limitRead, endpoint.Handle(s.room.GetRelatingEventsWithRelType)),
		c2s("getRelatingEventsWithRelTypeAndEventType", "GET", "/_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}", user, limitRead, endpoint.Handle(s.room.GetRelatingEventsWithTypes)),
		c2s("getThreadRoots", "GET", "/_matrix/client/v1/rooms/{roomId}/threads", user, limitRead, endpoint.Handle(s.room.GetThreads)),
		c2s("getEventByTimestamp", "GET", "/_matrix/client/v1/rooms/{roomId}/timestamp_to_event", user, limitJoin, endpoint.Handle(s.room.GetEventByTimestamp)),
		c2s("getSpaceHierarchy", "GET", "/_matrix/client/v1/rooms/{roomId}/hierarchy", user, limitJoin, endpoint.Handle(s.room.GetHierarchy)),
		c2s("getRoomSummary", "GET", "/_matrix/client/v1/room_summary/{roomIdOrAlias}", optional, limitJoin, endpoint.Handle(s.room.GetSummary), endpoint.Alias("/_matrix/client/unstable/im.nheko.summary/summary/{roomIdOrAlias}", "/_matrix/client/unstable/im.nheko.summary/rooms/{roomIdOrAlias}/summary")),
		c2s("roomInitialSync", "GET", "/_matrix/client/v3/rooms/{roomId}/initialSync", userOrGuest, limitRead, planned),
		c2s("setTyping", "PUT", "/_matrix/client/v3/rooms/{roomId}/typing/{userId}", user, limitWrite, endpoint.Handle(s.receipt.Typing)),
		c2s("postReceipt", "POST", "/_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}", user, limitWrite, endpoint.Handle(s.receipt.Post)),
		c2s("setReadMarker", "POST", "/_matrix/client/v3/rooms/{roomId}/read_markers", user, limitWrite, endpoint.Handle(s.receipt.Mark)),
		c2s("search", "POST", "/_matrix/client/v3/search", user, limitSearch, planned),
		c2s("reportRoom", "POST", "/_matrix/client/v3/rooms/{roomId}/report", user, limitWrite, endpoint.Handle(s.room.ReportRoom)),
		c2s("reportEvent", "POST", "/_matrix/client/v3/rooms/{roomId}/report/{eventId}", user, limitWrite, endpoint.Handle(s.room.ReportEvent)),
		c2s("reportUser", "POST", "/_matrix/client/v3/users/{userId}/report", user, limitWrite, endpoint.Handle(s.room.ReportUser)),

		// room directory
		c2s("setRoomAlias", "PUT", "/_matrix/client/v3/directory/room/{roomAlias}", user, limitWrite, endpoint.Handle(s.directory.SetAlias)),
		c2s("getRoomIdByAlias", "GET", "/_matrix/client/v3/directory/room/{roomAlias}", none, limitRead, endpoint.Handle(s.directory.GetAlias)),
		c2s("deleteRoomAlias", "DELETE", "/_matrix/client/v3/directory/room/{roomAlias}", user, limitWrite, endpoint.Handle(s.directory.DeleteAlias)),
		c2s("getLocalAliases", "GET", "/_matrix/client/v3/rooms/{roomId}/aliases", user, limitRead, endpoint.Handle(s.room.GetAliases)),
		c2s("getRoomVisibilityOnDirectory", "GET", "/_matrix/client/v3/directory/list/room/{roomId}", none, limitRead, endpoint.Handle(s.directory.GetVisibility)),
		c2s("setRoomVisibilityOnDirectory", "PUT", "/_matrix/client/v3/directory/list/room/{roomId}", user, limitWrite, endpoint.Handle(s.directory.SetVisibility)),
		c2s("getPublicRooms", "GET", "/_matrix/client/v3/publicRooms", optional, limitSearch, endpoint.Handle(s.directory.GetPublicRooms)),
		c2s("queryPublicRooms", "POST", "/_matrix/client/v3/publicRooms", user, limitSearch, endpoint.Handle(s.directory.QueryPublicRooms)),
		c2s("updateAppserviceRoomDirectoryVisibility", "PUT", "/_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}", appService, limitWrite, planned),

		// what is new
		c2s("sync", "GET", "/_matrix/client/v3/sync", userOrGuest, unlimited, s.sync(), endpoint.LongPoll()),
		c2s("getEvents", "GET", "/_matrix/client/v3/events", userOrGuest, unlimited, planned, endpoint.LongPoll()),
		c2s("initialSync", "GET", "/_matrix/client/v3/initialSync", user, limitRead, planned),
		c2s("getOneEvent", "GET", "/_matrix/client/v3/events/{eventId}", user, limitRead, planned),
		c2s("peekEvents", "GET", "/_matrix/client/v3/events", userOrGuest, limitRead, nobody, endpoint.AnsweredBy("getEvents")),
		c2s("getNotifications", "GET", "/_matrix/client/v3/notifications", user, limitRead, endpoint.Handle(s.room.GetNotifications)),

		// push rules and pushers
		c2s("getPushRules", "GET", "/_matrix/client/v3/pushrules/", userOrGuest, limitRead, endpoint.Handle(s.push.Rules)),
		c2s("getPushRulesGlobal", "GET", "/_matrix/client/v3/pushrules/global/", user, limitRead, endpoint.Handle(s.push.GlobalRules)),
		c2s("getPushRule", "GET", "/_matrix/client/v3/pushrules/global/{kind}/{ruleId}", user, limitRead, endpoint.Handle(s.push.Rule)),
		c2s("deletePushRule", "DELETE", "/_matrix/client/v3/pushrules/global/{kind}/{ruleId}", user, limitWrite, endpoint.Handle(s.push.DeleteRule)),
		c2s("setPushRule", "PUT", "/_matrix/client/v3/pushrules/global/{kind}/{ruleId}", user, limitWrite, endpoint.Handle(s.push.PutRule)),
		c2s("isPushRuleEnabled", "GET", "/_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled", user, limitRead, endpoint.Handle(s.push.Enabled)),
		c2s("setPushRuleEnabled", "PUT", "/_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled", user, limitWrite, endpoint.Handle(s.push.SetEnabled)),
		c2s("getPushRuleActions", "GET", "/_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions", user, limitRead, endpoint.Handle(s.push.Actions)),
		c2s("setPushRuleActions", "PUT", "/_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions", user, limitWrite, endpoint.Handle(s.push.SetActions)),
		c2s("getPushers", "GET", "/_matrix/client/v3/pushers", user, limitRead, endpoint.Handle(s.push.Pushers)),
		c2s("postPusher", "POST", "/_matrix/client/v3/pushers/set", user, limitWrite, endpoint.Handle(s.push.SetPusher)),

		// media
		c2s("getContentAuthed", "GET", "/_matrix/client/v1/media/download/{serverName}/{mediaId}", userOrGuest, limitMedia, endpoint.Raw(s.media.Download), endpoint.LongPoll()),
		c2s("getContentOverrideNameAuthed", "GET", "/_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}", userOrGuest, limitMedia, endpoint.Raw(s.media.Download), endpoint.LongPoll()),
		c2s("getContentThumbnailAuthed", "GET", "/_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}", userOrGuest, limitMedia, endpoint.Raw(s.media.Thumbnail)),
		c2s("getUrlPreviewAuthed", "GET", "/_matrix/client/v1/media/preview_url", user, limitSearch, planned),
		c2s("getConfigAuthed", "GET", "/_matrix/client/v1/media/config", user, limitRead, endpoint.Handle(s.media.Config)),
		c2s("uploadContent", "POST", "/_matrix/media/v3/upload", user, limitMedia, endpoint.Raw(s.media.Upload), endpoint.LongPoll()),
		c2s("uploadContentToMXC", "PUT", "/_matrix/media/v3/upload/{serverName}/{mediaId}", user, limitMedia, endpoint.Raw(s.media.Fill), endpoint.LongPoll()),
		c2s("createContent", "POST", "/_matrix/media/v1/create", user, limitMedia, endpoint.Handle(s.media.Create)),
		c2s("getContent", "GET", "/_matrix/media/v3/download/{serverName}/{mediaId}", none, limitMedia, endpoint.Raw(s.media.PublicDownload), endpoint.LongPoll()),
		c2s("getContentOverrideName", "GET", "/_matrix/media/v3/download/{serverName}/{mediaId}/{fileName}", none, limitMedia, endpoint.Raw(s.media.PublicDownload), endpoint.LongPoll()),
		c2s("getContentThumbnail", "GET", "/_matrix/media/v3/thumbnail/{serverName}/{mediaId}", none, limitMedia, endpoint.Raw(s.media.PublicThumbnail)),
		c2s("getUrlPreview", "GET", "/_matrix/media/v3/preview_url", user, limitSearch, planned),
		c2s("getConfig", "GET", "/_matrix/media/v3/config", user, limitRead, endpoint.Handle(s.media.Config)),

		// application services, third-party networks, administration
		c2s("pingAppservice", "POST", "/_matrix/client/v1/appservice/{appserviceId}/ping", appService, limitWrite, planned),
		c2s("getProtocols", "GET", "/_matrix/client/v3/thirdparty/protocols", user, limitRead, planned),
		c2s("getProtocolMetadata", "GET", "/_matrix/client/v3/thirdparty/protocol/{protocol}", user, limitRead, planned),
		c2s("queryLocationByProtocol", "GET", "/_matrix/client/v3/thirdparty/location/{protocol}", user, limitRead, planned),
		c2s("queryUserByProtocol", "GET", "/_matrix/client/v3/thirdparty/user/{protocol}", user, limitRead, planned),
		c2s("queryLocationByAlias", "GET", "/_matrix/client/v3/thirdparty/location", user, limitRead, planned),
		c2s("queryUserByID", "GET", "/_matrix/client/v3/thirdparty/user", user, limitRead, planned),
		c2s("getWhoIs", "GET", "/_matrix/client/v3/admin/whois/{userId}", user, limitRead, endpoint.Handle(s.account.WhoIs)),
		c2s("getAdminSuspendUser", "GET", "/_matrix/client/v1/admin/suspend/{userId}", user, limitRead, endpoint.Handle(s.account.Suspended)),
		c2s("setAdminSuspendUser", "PUT", "/_matrix/client/v1/admin/suspend/{userId}", user, limitWrite, endpoint.Handle(s.account.Suspend)),
		c2s("getAdminLockUser", "GET", "/_matrix/client/v1/admin/lock/{userId}", user, limitRead, endpoint.Handle(s.account.Locked)),
		c2s("setAdminLockUser", "PUT", "/_matrix/client/v1/admin/lock/{userId}", user, limitWrite, endpoint.Handle(s.account.Lock)),
	}, s.beyondSpec())
}
