// People with the client library of Element Web meet in rooms without encryption: profiles, files, the directory, what
// is unread and what is ignored, spaces, moderation, knocking, an upgrade, devices. Alice and carol are on one server,
// bob is on the other.
import { ClientEvent, EventType, KnownMembership, NotificationCountType, PushRuleKind } from "matrix-js-sdk";
import { away, confirm, demand, device, find, home, password, reads, register, say, step, tell, until } from "./kit.mjs";

const equal = (got, want, what) => demand(JSON.stringify(got) === JSON.stringify(want), `${what} is ${JSON.stringify(got)}, not ${JSON.stringify(want)}`);

// refused is the code of the error that a request gets.
const refused = (asked) => asked.then(() => "no error", (error) => error.errcode ?? String(error));

// A red picture of one pixel.
const picture = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg==", "base64");

await tell(async () => {
    await register(home, "alice");
    await register(away, "bob");
    await register(home, "carol");
    const alice = await device(home, "alice"), bob = await device(away, "bob"), carol = await device(home, "carol");
    const server = alice.getDomain();
    const count = (client, room, kind = NotificationCountType.Total) => client.getRoom(room).getUnreadNotificationCount(kind);
    step("all have signed in and synced");

    const { content_uri: avatar } = await alice.uploadContent(picture, { type: "image/png", name: "alice.png" });
    await alice.setDisplayName("Alice of home");
    await alice.setAvatarUrl(avatar);
    const profile = await bob.getProfileInfo(alice.getUserId());
    equal([profile.displayname, profile.avatar_url], ["Alice of home", avatar], "the profile");
    for (const [what, size] of [["the file", []], ["the thumbnail", [32, 32, "crop"]]]) {
        const address = bob.mxcUrlToHttp(avatar, ...(size.length ? size : [undefined, undefined, undefined]), false, true, true);
        const answer = await fetch(address, { headers: { Authorization: `Bearer ${bob.getAccessToken()}` } });
        demand(answer.ok && answer.headers.get("content-type").startsWith("image/"), `${what}: ${answer.status} ${answer.headers.get("content-type")}`);
        if (!size.length) demand(picture.equals(Buffer.from(await answer.arrayBuffer())), "the file is not what was uploaded");
    }
    step("a profile, a file and its thumbnail");

    const name = "meeting place", alias = `#meeting:${server}`;
    const { room_id: room } = await alice.createRoom({ preset: "public_chat", visibility: "public", name, topic: "for all", room_alias_name: "meeting" });
    await until("the room is listed", async () => {
        const { chunk } = await bob.publicRooms({ server, limit: 10, filter: { generic_search_term: name } });
        return chunk.length === 1 && chunk[0].room_id === room && chunk[0].canonical_alias === alias && chunk[0].num_joined_members === 1;
    });
    const summary = await bob.getRoomSummary(alias, [server]);
    equal([summary.room_id, summary.name, summary.join_rule], [room, name, "public"], "the summary");
    await bob.joinRoom(alias, { viaServers: [server] });
    await carol.joinRoom(room);
    for (const client of [alice, bob, carol]) await until("all three are there", () => client.getRoom(room)?.getJoinedMemberCount() === 3);
    await until("bob sees alice's name and picture", () => {
        const member = bob.getRoom(room).getMember(alice.getUserId());
        return member?.rawDisplayName === "Alice of home" && member.getMxcAvatarUrl() === avatar;
    });
    await until("alice finds bob in the directory of users", async () => (await alice.searchUserDirectory({ term: "bob" })).results.some((user) => user.user_id === bob.getUserId()));
    step("a room found in the directory, its summary, and its members");

    await alice.sendTyping(room, true, 30_000);
    await until("bob sees alice type", () => bob.getRoom(room).getMember(alice.getUserId())?.typing);
    await alice.sendTyping(room, false, 0);
    await until("bob sees alice type no more", () => !bob.getRoom(room).getMember(alice.getUserId()).typing);
    await alice.setPresence({ presence: "unavailable", status_msg: "at lunch" });
    await until("bob sees alice at lunch", () => bob.getUser(alice.getUserId())?.presenceStatusMsg === "at lunch");
    step("typing and presence");

    const phone = await device(home, "alice");
    await alice.setAccountData("org.example.setting", { colour: "green" });
    await alice.setRoomTag(room, "m.favourite", { order: 0.5 });
    await alice.setRoomAccountData(room, "m.marked_unread", { unread: true });
    await until("the phone has the setting", () => phone.getAccountData("org.example.setting")?.getContent().colour === "green");
    await until("the phone has the tag", () => phone.getRoom(room)?.tags["m.favourite"]?.order === 0.5);
    await until("the phone has the mark", () => phone.getRoom(room).getAccountData("m.marked_unread")?.getContent().unread);
    await alice.deleteRoomTag(room, "m.favourite");
    await until("the phone has the tag no more", () => !phone.getRoom(room).tags["m.favourite"]);
    const greeted = new Promise((go) => bob.on(ClientEvent.ToDeviceEvent, go));
    await alice.sendToDevice("org.example.hello", new Map([[bob.getUserId(), new Map([["*", { greeting: "hi" }]])]]));
    equal((await greeted).getContent(), { greeting: "hi" }, "the message to bob's devices");
    step("settings, tags and messages to devices");

    await say(bob, room, "for alice", { "m.mentions": { user_ids: [alice.getUserId()] } });
    await say(bob, room, "for nobody", { "m.mentions": {} });
    await until("alice has two unread and one of them for her", () => count(alice, room) === 2 && count(alice, room, NotificationCountType.Highlight) === 1);
    await alice.sendReadReceipt(await reads(alice, room, "for nobody"));
    for (const client of [alice, phone]) await until("alice has nothing unread", () => count(client, room) === 0 && count(client, room, NotificationCountType.Highlight) === 0);
    await alice.addPushRule("global", PushRuleKind.RoomSpecific, room, { actions: [] });
    await until("the phone has the rule", () => phone.getRoomPushRule("global", room));
    await say(bob, room, "into the quiet");
    await reads(alice, room, "into the quiet");
    equal(count(alice, room), 0, "what is unread in a muted room");
    await alice.deletePushRule("global", PushRuleKind.RoomSpecific, room);
    await until("the phone has the rule no more", () => !phone.getRoomPushRule("global", room));
    await say(bob, room, "aloud again");
    await until("alice has one unread", () => count(alice, room) > 0);
    step("what is unread, with mentions and with a muted room");

    await carol.setIgnoredUsers([bob.getUserId()]);
    await until("carol ignores bob", () => carol.isUserIgnored(bob.getUserId()));
    await say(bob, room, "not for carol");
    await reads(alice, room, "not for carol");
    await say(alice, room, "for carol");
    await reads(carol, room, "for carol");
    demand(!find(carol, room, (event) => event.getContent().body === "not for carol"), "carol got what somebody said whom she ignores");
    await carol.setIgnoredUsers([]);
    step("somebody ignored");

    const start = find(bob, room, (event) => event.getContent().body === "for alice");
    const at = await bob.timestampToEvent(room, start.getTs(), "f");
    equal(at.event_id, start.getId(), "the event at its time");
    const late = await device(away, "bob");
    while (late.getRoom(room).oldState.paginationToken) await late.scrollback(late.getRoom(room), 3);
    await until("bob reads back to the beginning", () => late.getRoom(room).getLiveTimeline().getEvents()[0]?.getType() === EventType.RoomCreate);
    await bob.relations(room, start.getId(), null);
    await say(alice, room, "in a thread", { "m.relates_to": { rel_type: "m.thread", event_id: start.getId() } });
    await until("the thread is listed", async () => (await bob.createThreadListMessagesRequest(room, null, 10)).chunk.some((event) => event.event_id === start.getId()));
    step("history to the beginning, an event by its time, and the list of threads");

    const { room_id: space } = await alice.createRoom({ preset: "public_chat", name: "space", creation_content: { type: "m.space" } });
    await alice.sendStateEvent(space, EventType.SpaceChild, { via: [server], suggested: true }, room);
    await bob.joinRoom(space, { viaServers: [server] });
    const { rooms } = await bob.getRoomHierarchy(space);
    equal(rooms.map((each) => each.name), ["space", name], "the space");
    step("a space");

    await alice.setPowerLevel(room, bob.getUserId(), 50);
    await until("bob is a moderator", () => bob.getRoom(room).getMember(bob.getUserId())?.powerLevel === 50);
    await bob.kick(room, carol.getUserId(), "noise");
    await until("carol is out", () => carol.getRoom(room).getMyMembership() === KnownMembership.Leave);
    await bob.ban(room, carol.getUserId(), "more noise");
    await until("carol is banned", () => alice.getRoom(room).getMember(carol.getUserId())?.membership === KnownMembership.Ban);
    equal(await refused(carol.joinRoom(room)), "M_FORBIDDEN", "the answer to the banned");
    await bob.unban(room, carol.getUserId());
    await until("carol is banned no more", () => alice.getRoom(room).getMember(carol.getUserId())?.membership === KnownMembership.Leave);
    await carol.joinRoom(room);
    await until("bob sees carol again", () => bob.getRoom(room).getMember(carol.getUserId())?.membership === KnownMembership.Join);
    const sin = await say(carol, room, "a sin");
    await reads(bob, room, "a sin");
    await carol.reportEvent(room, sin, -100, "by mistake");
    await bob.redactEvent(room, sin);
    await until("the sin is redacted", () => find(alice, room, (event) => event.getId() === sin)?.isRedacted());
    step("moderation");

    const { room_id: door } = await alice.createRoom({ preset: "private_chat", initial_state: [{ type: "m.room.join_rules", state_key: "", content: { join_rule: "knock" } }] });
    await bob.knockRoom(door, { viaServers: [server], reason: "please" });
    await until("alice sees the knock", () => alice.getRoom(door).getMember(bob.getUserId())?.membership === KnownMembership.Knock);
    await until("bob sees his knock", () => bob.getRoom(door)?.getMyMembership() === KnownMembership.Knock);
    await alice.invite(door, bob.getUserId());
    await until("bob is invited", () => bob.getRoom(door)?.getMyMembership() === KnownMembership.Invite);
    await bob.joinRoom(door);
    await until("bob is in", () => alice.getRoom(door).getMember(bob.getUserId())?.membership === KnownMembership.Join);
    await bob.leave(door);
    await until("bob is out", () => bob.getRoom(door).getMyMembership() === KnownMembership.Leave);
    await bob.forget(door, true);
    step("a knock, an invite, and a room forgotten");

    const { replacement_room: next } = await alice.upgradeRoom(room, "12");
    await until("bob is shown the way", () => bob.getRoom(room).currentState.getStateEvents(EventType.RoomTombstone, "")?.getContent().replacement_room === next);
    await bob.joinRoom(next, { viaServers: [server] });
    await until("bob is in the new room", () => bob.getRoom(next)?.getMyMembership() === KnownMembership.Join);
    equal(bob.getRoom(next).findPredecessor()?.roomId, room, "the room before");
    equal((await bob.getRoomIdForAlias(alias)).room_id, next, "where the alias leads");
    await say(bob, next, "moved");
    await reads(alice, next, "moved");
    step("an upgrade");

    await phone.setDeviceDetails(phone.getDeviceId(), { display_name: "phone" });
    equal((await alice.getDevices()).devices.find((each) => each.device_id === phone.getDeviceId())?.display_name, "phone", "the name of the phone");
    phone.stopClient();
    await confirm("alice")((auth) => alice.deleteDevice(phone.getDeviceId(), auth));
    demand(!(await alice.getDevices()).devices.some((each) => each.device_id === phone.getDeviceId()), "the phone is still there");
    equal(await refused(phone.whoami()), "M_UNKNOWN_TOKEN", "the answer to a device that is deleted");
    const auth = { type: "m.login.password", identifier: { type: "m.id.user", user: "carol" }, password };
    const changed = await carol.setPassword(auth, "another password altogether", false).catch(({ data }) => carol.setPassword({ ...auth, session: data.session }, "another password altogether", false));
    equal(changed, {}, "the answer to a new password");
    equal(await refused(device(home, "carol")).then((answer) => answer.includes("M_FORBIDDEN")), true, "that the old password is refused");
    demand((await alice.getOpenIdToken()).matrix_server_name === server, "the OpenID token is of another server");
    demand((await alice.fetchCapabilities())["m.room_versions"].available["12"], "version 12 is not offered");
    step("devices and passwords");
});
