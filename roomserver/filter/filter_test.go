package filter

import "testing"

// spec: c2s#filtering
func TestFiltersChooseTypesAndSenders(t *testing.T) {
	for _, c := range []struct {
		filter, typ, sender string
		want                bool
	}{
		{``, "m.room.message", "@a:b", true},
		{`{}`, "m.room.message", "@a:b", true},
		{`{"types":[]}`, "m.room.message", "@a:b", false},
		{`{"types":["m.room.*"]}`, "m.room.message", "@a:b", true},
		{`{"types":["m.*.message"]}`, "m.room.message", "@a:b", true},
		{`{"types":["m.*x*age"]}`, "m.room.message", "@a:b", false},
		{`{"types":["*"],"not_types":["m.room.*"]}`, "m.room.message", "@a:b", false},
		{`{"types":["m.room.mess"]}`, "m.room.message", "@a:b", false},
		{`{"types":["a*a"]}`, "a", "@a:b", false},
		{`{"senders":["@a:b"],"not_senders":["@a:b"]}`, "x", "@a:b", false},
		{`{"senders":["@c:b"]}`, "x", "@a:b", false},
	} {
		f, err := ParseRoom(c.filter)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Type(c.typ) && f.Sender(c.sender); got != c.want {
			t.Errorf("%s lets %s of %s pass: %v", c.filter, c.typ, c.sender, got)
		}
	}
	if _, err := ParseRoom(`{"types":1}`); err == nil {
		t.Error("a filter of the wrong form is read")
	}
}
