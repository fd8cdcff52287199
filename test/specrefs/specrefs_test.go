package main

import (
	"bytes"
	"os"
	"slices"
	"sync"
	"testing"

	"chancery/test/notice"
)

// sayOnce keeps the notice to one line for all tests here.
var sayOnce sync.Once

func specOrNotice(t *testing.T) *specification {
	t.Helper()
	dir, err := findSpec("../..")
	if err != nil {
		sayOnce.Do(func() { notice.Print("spec references are not resolved: %v", err) })
		t.SkipNow()
	}
	return &specification{dir: dir, pages: map[string]*document{}}
}

func TestEveryReferenceOfTheTreeResolves(t *testing.T) {
	spec := specOrNotice(t)
	refs, err := scan("../..")
	if err != nil {
		t.Fatal(err)
	}
	if len(refs) == 0 {
		t.Fatal("no reference was found, so nothing was checked")
	}
	for _, r := range refs {
		if _, err := spec.resolve(r); err != nil {
			t.Errorf("%s:%d: %v", r.file, r.line, err)
		}
	}
}

func TestResolve(t *testing.T) {
	spec := specOrNotice(t)
	for _, c := range []struct{ target, rule, want string }{
		{"c2s/sendMessage", "", "Send a message event to the given room."},
		{"s2s/sendTransaction", "", "Send a transaction"},
		{"c2s/sendMassage", "", ""},
		{"c2s/m.room.create", "", "m.room.create"},
		{"c2s/m.room.creation", "", ""},
		{"c2s#soft-logout", "", "Soft logout"},
		{"c2s#mroommember", "", "m.room.member"},
		{"c2s#put_matrixclientv3roomsroomidsendeventtypetxnid", "", "Send a message event to the given room."},
		{"c2s#annotations-client-behaviour", "", "Client behaviour"},
		{"modules/push#push-rules", "", "Push Rules"},
		{"s2s#checks-performed-on-receipt-of-a-pdu", "", "Checks performed on receipt of a PDU"},
		{"s2s#checks-performed-on-receipt-of-a-pdu", "2", "Passes signature checks, otherwise it is dropped."},
		{"s2s#knocking-rooms", "", "Knocking upon a room"},
		{"s2s#no-such-section", "", ""},
		{"appendices#server-name", "", "Server Name"},
		{"rooms/v11", "", "Client considerations"},
		{"rooms/v13", "", ""},
		{"rooms/v11#authorisation-rules", "1.1", "If it has any `prev_events`, reject."},
		{"rooms/v12#authorisation-rules", "10.11", "Otherwise, allow."},
		{"rooms/v12#authorisation-rules", "10.12", ""},
		{"rooms/v9#authorisation-rules", "1.1", "If it has any `prev_events`, reject."},
		{"rooms/v11", "4.3.3", ""},
		{"msc4186", "", "MSC4186: Simplified Sliding Sync"},
		{"msc1", "", ""},
		{"nowhere#x", "", ""},
	} {
		got, err := spec.resolve(reference{target: c.target, rule: c.rule})
		if (err != nil) != (c.want == "") || got != c.want {
			t.Errorf("%s %s: got %q, %v; want %q", c.target, c.rule, got, err, c.want)
		}
	}
}

func TestReferencesInSource(t *testing.T) {
	src := "// spec: c2s/sendMessage\n" +
		"x() // spec: rooms/v11#authorisation-rules 4.3.3, s2s#pdus (both)\n" +
		"// spec: s2s#soft-failure, which is not a rejection\n" +
		"spec(t, \"rooms/v12#definitions\", \"2\")\n" +
		"// the spec: not a reference\n"
	want := []string{"c2s/sendMessage", "rooms/v11#authorisation-rules 4.3.3", "s2s#pdus", "s2s#soft-failure", "rooms/v12#definitions 2"}
	var got []string
	for _, r := range references("a.go", src) {
		got = append(got, r.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRulesAreCountedAsRendered(t *testing.T) {
	d := parsePage("# Rules\n1. one\n    1. first\n    1. second\n       more words\n\n    2. third\n2. two\n\nA word.\n\n1. another list\n## Rules\n1. again\n")
	first := d.sections["rules"].rules
	for rule, want := range map[string]string{"1": "one", "1.3": "third", "2": "two", "2.1": ""} {
		if first[rule] != want {
			t.Errorf("rule %s is %q, want %q", rule, first[rule], want)
		}
	}
	if d.sections["rules-1"].rules["1"] != "again" {
		t.Errorf("the second section of a name is %+v", d.sections["rules-1"])
	}
}

// What roomserver/auth says of a rule is what the specification says.
func TestRuleTextsAreThoseOfTheSpecification(t *testing.T) {
	spec := specOrNotice(t)
	var now bytes.Buffer
	if err := writeRules(&now, spec); err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile("../../roomserver/auth/rules.txt")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(kept, now.Bytes()) {
		t.Error("the rules' texts are old: go run ./test/specrefs -rules > roomserver/auth/rules.txt")
	}
}
