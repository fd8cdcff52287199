// Two people on two servers, each with the client library of Element Web and its cryptography in Rust: they trust
// each other by emoji, talk in an encrypted room, edit, answer in a thread, read, and one comes back on a new
// device with nothing but the recovery key.
import { CryptoEvent, VerificationPhase, VerifierEvent } from "matrix-js-sdk/lib/crypto-api/index.js";
import { away, confirm, demand, device, find, home, reads, register, say, statesAfter, step, tell, until } from "./kit.mjs";

// identity makes a user's keys, the place where they are kept, and the backup of the rooms' keys.
async function identity(client, name) {
    const crypto = client.getCrypto();
    await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: confirm(name) });
    await crypto.bootstrapSecretStorage({ createSecretStorageKey: () => crypto.createRecoveryKeyFromPassphrase(), setupNewKeyBackup: true });
    await until(`${name} is ready for cross-signing`, () => crypto.isCrossSigningReady());
    await until(`${name} has secret storage`, () => crypto.isSecretStorageReady());
    await until(`${name} has a backup of keys`, async () => (await crypto.getActiveSessionBackupVersion()) !== null);
}

// compare lets two users compare emoji in their room; both say that they match.
async function compare(one, other, room) {
    const requested = new Promise((go) => other.on(CryptoEvent.VerificationRequestReceived, go));
    const mine = await one.getCrypto().requestVerificationDM(other.getUserId(), room);
    const theirs = await requested;
    await theirs.accept();
    await until("the request is accepted", () => mine.phase === VerificationPhase.Ready);
    const verifier = await mine.startVerification("m.sas.v1");
    const answering = await until("the other side starts", () => theirs.verifier);
    const emoji = [];
    const done = [verifier, answering].map((v, i) => {
        v.on(VerifierEvent.ShowSas, (sas) => {
            emoji[i] = JSON.stringify(sas.sas.emoji);
            until("both show emoji", () => emoji[0] && emoji[1]).then(() => (emoji[0] === emoji[1] ? sas.confirm() : sas.mismatch()));
        });
        return v.verify();
    });
    await Promise.all(done);
    await until("both are done", () => mine.phase === VerificationPhase.Done && theirs.phase === VerificationPhase.Done);
}

await tell(async () => {
    await register(home, "alice");
    await register(away, "bob");
    const bobSecret = {};
    const alice = await device(home, "alice", {});
    const bob = await device(away, "bob", bobSecret);
    step("both have signed in and synced");
    await identity(alice, "alice");
    await identity(bob, "bob");
    step("both have cross-signing keys, secret storage and a key backup");

    const { room_id: room } = await alice.createRoom({
        preset: "private_chat", invite: [bob.getUserId()],
        initial_state: [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }],
    });
    await until("bob is invited", () => bob.getRoom(room)?.getMyMembership() === "invite");
    await bob.joinRoom(room);
    await until("alice sees bob", () => alice.getRoom(room)?.getMember(bob.getUserId())?.membership === "join");
    await until("bob sees an encrypted room", () => bob.getRoom(room)?.hasEncryptionStateEvent());
    step("an encrypted room of both");
    const first = await say(alice, room, "from alice");
    await reads(bob, room, "from alice");
    await say(bob, room, "from bob");
    await reads(alice, room, "from bob");
    step("messages are read both ways");

    await compare(alice, bob, room);
    for (const [one, other] of [[alice, bob], [bob, alice]]) {
        await until(`${one.getUserId()} trusts the other`, async () => (await one.getCrypto().getUserVerificationStatus(other.getUserId())).isCrossSigningVerified());
        const status = await one.getCrypto().getDeviceVerificationStatus(other.getUserId(), other.getDeviceId());
        demand(status?.crossSigningVerified, "the other's device is not verified by cross-signing");
    }
    step("they trust each other by emoji");

    const edit = await say(alice, room, "* edited by alice", { "m.new_content": { msgtype: "m.text", body: "edited by alice" }, "m.relates_to": { rel_type: "m.replace", event_id: first } });
    await until("bob sees the edit", () => find(bob, room, (event) => event.getId() === first)?.replacingEvent()?.getId() === edit);
    await alice.sendEvent(room, "m.reaction", { "m.relates_to": { rel_type: "m.annotation", event_id: first, key: "👍" } });
    await until("bob sees the reaction", () => bob.getRoom(room).relations.getChildEventsForEvent(first, "m.annotation", "m.reaction")?.getRelations().length === 1);
    step("an edit and a reaction");

    const thread = { "m.relates_to": { rel_type: "m.thread", event_id: first, is_falling_back: true, "m.in_reply_to": { event_id: first } } };
    await say(bob, room, "in a thread", thread);
    await say(bob, room, "in a thread again", thread);
    await until("alice sees the thread", () => alice.getRoom(room).getThread(first)?.length === 2);
    await reads(alice, room, "in a thread");
    const answer = await reads(alice, room, "in a thread again");
    step("a thread");

    const last = await say(alice, room, "have you read this?");
    const said = await reads(bob, room, "have you read this?");
    await bob.sendReadReceipt(said);
    await until("alice sees the receipt", () => alice.getRoom(room).hasUserReadEvent(bob.getUserId(), last));
    await until("bob has nothing unread in the room", () => bob.getRoom(room).getRoomUnreadNotificationCount("total") === 0);
    await alice.sendReadReceipt(answer);
    await until("alice has nothing unread in the thread", () => alice.getRoom(room).getThreadUnreadNotificationCount(first, "total") === 0);
    step("receipts in the room and in the thread");

    const taken = await say(alice, room, "taken back");
    await reads(bob, room, "taken back");
    await alice.redactEvent(room, taken);
    await until("bob sees the redaction", () => find(bob, room, (event) => event.getId() === taken)?.isRedacted());
    step("a redaction");

    // Bob's keys are in the backup before he leaves the device behind.
    await until("bob's keys are backed up", async () => {
        const backup = await fetch(`${away}/_matrix/client/v3/room_keys/version`, { headers: { Authorization: `Bearer ${bob.getAccessToken()}` } });
        return (await backup.json()).count > 0;
    });
    const again = await device(away, "bob", { key: bobSecret.key, id: bobSecret.id });
    demand(await again.getCrypto().userHasCrossSigningKeys(bob.getUserId(), true), "the new device does not see bob's cross-signing keys");
    await again.getCrypto().bootstrapCrossSigning({ authUploadDeviceSigningKeys: confirm("bob") });
    await until("the new device is ready for cross-signing", () => again.getCrypto().isCrossSigningReady());
    await again.getCrypto().loadSessionBackupPrivateKeyFromSecretStorage();
    demand((await again.getCrypto().checkKeyBackupAndEnable())?.trustInfo.trusted !== false, "the backup is not trusted");
    const restored = await again.getCrypto().restoreKeyBackup();
    demand(restored.imported > 0, `of ${restored.total} keys in the backup ${restored.imported} were imported`);
    await reads(again, room, "have you read this?");
    step("a new device reads what was said before, from the key backup");
    await until("alice trusts bob's new device", async () => (await alice.getCrypto().getDeviceVerificationStatus(bob.getUserId(), again.getDeviceId()))?.crossSigningVerified);
    await say(alice, room, "to the new device");
    await reads(again, room, "to the new device");
    await say(again, room, "from the new device");
    await reads(alice, room, "from the new device");
    step("the new device takes part, trusted by the other side");

    demand(statesAfter > 0, "no answer of /sync had the state after the timeline");
    step(`the state after the timeline came with ${statesAfter} rooms`);
});
