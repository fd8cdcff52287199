// Package interop proves that we share rooms with other people's servers: it starts a real Synapse, and a real
// Dendrite where one is at hand, beside the binary of ours, and tells the same stories with the room on either side.
//
// `make interop` runs it. It needs Python, and the package index the first time: what is missing there is a
// failure. Plain `go test ./...` needs none of it and leaves it alone. DENDRITE names a Dendrite binary;
// SYNAPSE=off leaves Synapse away. What a peer cannot do is written in its `lacks`, with the reason.
package interop
