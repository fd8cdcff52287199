// Two people on two servers, each with the client library of Element Web and its cryptography in Rust: they trust
// each other by emoji, talk in an encrypted room, edit, answer in a thread, read, and one comes back on a new
// device with nothing but the recovery key. Each step that works is a line; the first that fails ends the program.
import * as sdk from "matrix-js-sdk";
import { CryptoEvent, VerificationPhase, VerifierEvent } from "matrix-js-sdk/lib/crypto-api/index.js";
import { logger } from "matrix-js-sdk/lib/logger.js";

if (!process.env.JS_LOG) {
    logger.setLevel("silent", false);
    console.debug = console.info = console.warn = console.error = () => {}; // the cryptography in Rust writes there
}
const [home, away] = process.argv.slice(2);
const password = "correct horse battery staple";
const began = Date.now();

const step = (what) => console.log(`ok ${((Date.now() - began) / 1000).toFixed(1)}s ${what}`);
const demand = (is, what) => {
    if (!is) throw new Error(what);
};

// until waits until something is there, and gives it.
async function until(what, look) {
    for (const end = Date.now() + 300_000; ; await new Promise((go) => setTimeout(go, 50))) {
        const found = await look();
        if (found) return found;
        if (Date.now() > end) throw new Error(`in vain waited for: ${what}`);
    }
}

async function post(url, body) {
    const answer = await fetch(url, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
    const got = await answer.json();
    demand(answer.ok, `${url}: ${answer.status} ${JSON.stringify(got)}`);
    return got;
}

let statesAfter = 0; // rooms in answers of /sync that had the state after the timeline

// device signs in one more device and waits for its first /sync.
async function device(server, name, secret) {
    const login = await post(`${server}/_matrix/client/v3/login`, { type: "m.login.password", password, identifier: { type: "m.id.user", user: name } });
    const client = sdk.createClient({
        baseUrl: server, userId: login.user_id, deviceId: login.device_id, accessToken: login.access_token, timelineSupport: true,
        cryptoCallbacks: {
            getSecretStorageKey: async ({ keys }) => (secret.key ? [secret.id ?? Object.keys(keys)[0], secret.key] : null),
            cacheSecretStorageKey: (id, _info, key) => Object.assign(secret, { id, key }),
        },
        fetchFn: async (...request) => {
            const answer = await fetch(...request);
            if (String(request[0]).includes("/sync?")) {
                const rooms = (await answer.clone().json()).rooms?.join ?? {};
                statesAfter += Object.values(rooms).filter((room) => "org.matrix.msc4222.state_after" in room || "state_after" in room).length;
            }
            return answer;
        },
    });
    await client.initRustCrypto({ useIndexedDB: false });
    await client.startClient({ initialSyncLimit: 50, threadSupport: true, pendingEventOrdering: "detached", pollTimeout: 2_000 });
    await until(`${name} has synced`, () => client.isInitialSyncComplete());
    return client;
}

const confirm = (name) => async (make) =>
    make({ type: "m.login.password", identifier: { type: "m.id.user", user: name }, password }).catch(async (refused) =>
        make({ type: "m.login.password", identifier: { type: "m.id.user", user: name }, password, session: refused.data.session }),
    );

// identity makes a user's keys, the place where they are kept, and the backup of the rooms' keys.
async function identity(client, name) {
    const crypto = client.getCrypto();
    await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: confirm(name) });
    await crypto.bootstrapSecretStorage({ createSecretStorageKey: () => crypto.createRecoveryKeyFromPassphrase(), setupNewKeyBackup: true });
    await until(`${name} is ready for cross-signing`, () => crypto.isCrossSigningReady());
    await until(`${name} has secret storage`, () => crypto.isSecretStorageReady());
    await until(`${name} has a backup of keys`, async () => (await crypto.getActiveSessionBackupVersion()) !== null);
}

const find = (client, room, is) =>
    client.getRoom(room)?.getTimelineSets().flatMap((set) => set.getLiveTimeline().getEvents()).concat(client.getRoom(room)?.getThreads().flatMap((thread) => thread.events) ?? []).find(is);

// reads waits until a client has decrypted a text.
const reads = (client, room, text) =>
    until(`${client.getUserId()} reads ${text}`, () => find(client, room, (event) => event.getContent().body === text && !event.isDecryptionFailure()));

// say sends a text and gives its ID. When /sync is quicker than the answer to the send, the library takes the
// answer for a fault in a thread that is not laid out yet ("not a local echo": it has matched the transaction ID
// already), and that client may miss the event in its thread. It is sent all the same: there is no ID then.
const say = async (client, room, body, more) => {
    try {
        return (await client.sendEvent(room, "m.room.message", { msgtype: "m.text", body, ...more })).event_id;
    } catch (fault) {
        if (!String(fault).includes("not a local echo")) throw fault;
    }
};

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

const clients = [];
try {
    const [aliceName, bobName] = ["alice", "bob"];
    for (const [server, name] of [[home, aliceName], [away, bobName]]) {
        await post(`${server}/_matrix/client/v3/register`, { username: name, password, auth: { type: "m.login.dummy" } });
    }
    const aliceSecret = {}, bobSecret = {};
    const alice = await device(home, aliceName, aliceSecret);
    const bob = await device(away, bobName, bobSecret);
    clients.push(alice, bob);
    step("both have signed in and synced");
    await identity(alice, aliceName);
    await identity(bob, bobName);
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
    const again = await device(away, bobName, { key: bobSecret.key, id: bobSecret.id });
    clients.push(again);
    demand(await again.getCrypto().userHasCrossSigningKeys(bob.getUserId(), true), "the new device does not see bob's cross-signing keys");
    await again.getCrypto().bootstrapCrossSigning({ authUploadDeviceSigningKeys: confirm(bobName) });
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
    console.log("done");
} catch (failed) {
    console.log(`failed: ${failed.stack ?? failed}`);
    process.exitCode = 1;
}
for (const client of clients) client.stopClient();
setTimeout(() => process.exit(), 500).unref();
