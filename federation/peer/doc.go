// Package peer is the way out to other servers: it finds them, proves who we are, checks who
// they are, and waits when they are down. It knows the server-server API's requests and keys,
// and nothing of rooms: events pass through it as bytes.
//
// Client speaks to destinations, KeyRing keeps the signing keys of others, Keys are our own,
// and Guard stands before every dial of the house, federation or not.
package peer
