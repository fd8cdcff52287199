package event

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"maunium.net/go/mautrix/id"
)

// A message as Element sends it, encrypted: about 1 KB on the wire.
var benchContent = `{"algorithm":"m.megolm.v1.aes-sha2","sender_key":"IlRMeOPX2e0MurIyfWEucYBRVOEEUMrOHqn/8mLqMjA","device_id":"RJYKSTBOIE",` +
	`"session_id":"X3lUlvLELLYxeTx4yOVu6UDpasGEVO0Jbu+QFnm0cKQ","ciphertext":"` + strings.Repeat("AwgAEnACgAkLmt6qF84IK", 20) + `"}`

func benchProto() Proto {
	p := proto(v11, "m.room.encrypted", nil, benchContent)
	p.AuthEvents = append(p.AuthEvents, eventOf(v11, "auth3"), eventOf(v11, "auth4"))
	return p
}

// The figures of gomatrixserverlib stand beside ours in the same run.
func BenchmarkBuildSign(b *testing.B) {
	p := benchProto()
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Build(v11, p, domain, keyID, key, then); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("gomatrixserverlib", func(b *testing.B) {
		impl := gomatrixserverlib.MustGetRoomVersion("11")
		strs := func(ids []id.EventID) (out []string) {
			for _, e := range ids {
				out = append(out, string(e))
			}
			return out
		}
		b.ReportAllocs()
		for b.Loop() {
			eb := impl.NewEventBuilderFromProtoEvent(&gomatrixserverlib.ProtoEvent{
				SenderID: string(p.Sender), RoomID: string(p.RoomID), Type: p.Type, Depth: p.Depth, Content: spec.RawJSON(p.Content),
				PrevEvents: strs(p.PrevEvents), AuthEvents: strs(p.AuthEvents),
			})
			e, err := eb.Build(then, domain, keyID, key)
			if err != nil {
				b.Fatal(err)
			}
			e.EventID()
		}
	})
}

func benchRaw(b *testing.B) (*Event, []byte) {
	e, err := Build(v11, benchProto(), domain, keyID, key, then)
	if err != nil {
		b.Fatal(err)
	}
	raw := append(e.JSON()[:e.Size()-1:e.Size()-1], `,"unsigned":{"age":1234}}`...)
	if !json.Valid(raw) {
		b.Fatal("no JSON")
	}
	b.SetBytes(int64(e.Size()))
	b.ReportAllocs()
	return e, raw
}

func BenchmarkParse(b *testing.B) {
	b.Run("ours", func(b *testing.B) {
		_, raw := benchRaw(b)
		for b.Loop() {
			if _, err := Parse(v11, raw); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("gomatrixserverlib", func(b *testing.B) {
		_, raw := benchRaw(b)
		impl := gomatrixserverlib.MustGetRoomVersion("11")
		for b.Loop() {
			e, err := impl.NewEventFromUntrustedJSON(raw)
			if err != nil {
				b.Fatal(err)
			}
			e.EventID()
		}
	})
}

func BenchmarkParseStored(b *testing.B) {
	b.Run("ours", func(b *testing.B) {
		e, _ := benchRaw(b)
		for b.Loop() {
			if _, err := ParseStored(v11, e.ID(), e.JSON()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("gomatrixserverlib", func(b *testing.B) {
		e, _ := benchRaw(b)
		impl := gomatrixserverlib.MustGetRoomVersion("11")
		for b.Loop() {
			if _, err := impl.NewEventFromTrustedJSONWithEventID(string(e.ID()), e.JSON(), false); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	b.Run("ours", func(b *testing.B) {
		e, _ := benchRaw(b)
		for b.Loop() {
			if err := VerifySignature(e, domain, keyID, public); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("gomatrixserverlib", func(b *testing.B) {
		e, _ := benchRaw(b)
		impl := gomatrixserverlib.MustGetRoomVersion("11")
		for b.Loop() {
			redacted, err := impl.RedactEventJSON(e.JSON())
			if err != nil {
				b.Fatal(err)
			}
			if err := gomatrixserverlib.VerifyJSON(domain, keyID, public, redacted); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkClient(b *testing.B) {
	e, _ := benchRaw(b)
	for b.Loop() {
		e.ClientPieces()
	}
}
