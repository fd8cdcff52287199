// What the programs here have in common: two servers, people with the client library of Element Web, and steps. Each
// step that works is a line; the first that fails ends the program.
import * as sdk from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";

if (!process.env.JS_LOG) {
    logger.setLevel("silent", false);
    console.debug = console.info = console.warn = console.error = () => {}; // the cryptography in Rust writes there
}
export const [home, away] = process.argv.slice(2);
export const password = "correct horse battery staple";
const began = Date.now();

export const step = (what) => console.log(`ok ${((Date.now() - began) / 1000).toFixed(1)}s ${what}`);
export const demand = (is, what) => {
    if (!is) throw new Error(what);
};

// until waits until something is there, and gives it.
export async function until(what, look) {
    for (const end = Date.now() + 300_000; ; await new Promise((go) => setTimeout(go, 50))) {
        const found = await look();
        if (found) return found;
        if (Date.now() > end) throw new Error(`in vain waited for: ${what}`);
    }
}

export async function post(url, body) {
    const answer = await fetch(url, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
    const got = await answer.json();
    demand(answer.ok, `${url}: ${answer.status} ${JSON.stringify(got)}`);
    return got;
}

export let statesAfter = 0; // rooms in answers of /sync that had the state after the timeline

const clients = [];

// register makes an account.
export const register = (server, name) => post(`${server}/_matrix/client/v3/register`, { username: name, password, auth: { type: "m.login.dummy" } });

// device signs in one more device and waits for its first /sync; with a place for its secret it encrypts.
export async function device(server, name, secret) {
    const login = await post(`${server}/_matrix/client/v3/login`, { type: "m.login.password", password, identifier: { type: "m.id.user", user: name } });
    const client = sdk.createClient({
        baseUrl: server, userId: login.user_id, deviceId: login.device_id, accessToken: login.access_token, timelineSupport: true,
        cryptoCallbacks: secret && {
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
    if (secret) await client.initRustCrypto({ useIndexedDB: false });
    await client.startClient({ initialSyncLimit: 50, threadSupport: true, pendingEventOrdering: "detached", pollTimeout: 2_000 });
    await until(`${name} has synced`, () => client.isInitialSyncComplete());
    clients.push(client);
    return client;
}

export const confirm = (name) => async (make) =>
    make({ type: "m.login.password", identifier: { type: "m.id.user", user: name }, password }).catch(async (refused) =>
        make({ type: "m.login.password", identifier: { type: "m.id.user", user: name }, password, session: refused.data.session }),
    );

export const find = (client, room, is) =>
    client.getRoom(room)?.getTimelineSets().flatMap((set) => set.getLiveTimeline().getEvents()).concat(client.getRoom(room)?.getThreads().flatMap((thread) => thread.events) ?? []).find(is);

// reads waits until a client has a text, decrypted where it was encrypted.
export const reads = (client, room, text) =>
    until(`${client.getUserId()} reads ${text}`, () => find(client, room, (event) => event.getContent().body === text && !event.isDecryptionFailure()));

// say sends a text and gives its ID. When /sync is quicker than the answer to the send, the library takes the
// answer for a fault in a thread that is not laid out yet ("not a local echo": it has matched the transaction ID
// already), sends once more for half a minute, and may miss the event in its thread. It is sent all the same: there is
// no ID then.
export const say = async (client, room, body, more) => {
    try {
        return (await client.sendEvent(room, "m.room.message", { msgtype: "m.text", body, ...more })).event_id;
    } catch (fault) {
        if (!String(fault).includes("not a local echo")) throw fault;
    }
};

// tell runs a program, and says at its end whether all went well.
export async function tell(story) {
    try {
        await story();
        console.log("done");
    } catch (failed) {
        console.log(`failed: ${failed.stack ?? failed}`);
        process.exitCode = 1;
    }
    for (const client of clients) client.stopClient();
    setTimeout(() => process.exit(), 500).unref();
}
