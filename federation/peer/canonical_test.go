package peer

import (
	"bytes"
	"encoding/json"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
)

func TestCanonicalJSON(t *testing.T) {
	// spec: appendices#canonical-json
	for in, want := range map[string]string{
		`{}`: `{}`, ` { "one" : 1 , "two" : "Two" } `: `{"one":1,"two":"Two"}`, `{"b":"2","a":"1"}`: `{"a":"1","b":"2"}`,
		`{"auth":{"success":true,"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"medium":"email","address":"a@b"}]}}}`: `{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"a@b","medium":"email"}]},"success":true}}`,
		`{"a":"日本語"}`: `{"a":"日本語"}`, `{"本":2,"日":1}`: `{"日":1,"本":2}`, `{"a":"\u65E5"}`: `{"a":"日"}`, `{"a":null}`: `{"a":null}`, `{"a":-0,"b":1.50}`: `{"a":0,"b":1.50}`,
		`["\u0000\u001F\b\t\n\f\r\"\\\/\u007f"]`: "[\"\\u0000\\u001f\\b\\t\\n\\f\\r\\\"\\\\/\x7f\"]",
		`["\ud83d\ude00",""]`:                    `["😀",""]`, `{"a":1,"a":2}`: `{"a":2}`, `{"\u0061":1,"B":2}`: `{"B":2,"a":1}`, `{"😀":1,"\uffee":2}`: `{"￮":2,"😀":1}`, `[[],{}, [ ] , 1]`: `[[],{},[],1]`,
		`"x"`: `"x"`, ` 5 `: `5`, `true`: `true`,
	} {
		if got, err := CanonicalJSON([]byte(in)); err != nil || string(got) != want {
			t.Errorf("%s gives %s, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{``, `{`, `{"a"}`, `nul`, `01`, "\"\xff\"", `"\ud800"`, `"\udc00"`, `"\ud800\u0041"`, `{"\ud800":1}`, `{} {}`, strings.Repeat("[", 20000) + strings.Repeat("]", 20000)} {
		if got, err := CanonicalJSON([]byte(in)); err == nil {
			t.Errorf("%.40q gives %.40q", in, got)
		}
	}
}

func TestNestingDoesNotCost(t *testing.T) {
	deep := strings.Repeat(`{"b":[`, 4900) + `"` + strings.Repeat("x", 4<<20) + `"` + strings.Repeat(`],"a":1}`, 4900)
	started := time.Now()
	if _, err := CanonicalJSON([]byte(deep)); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(started); d > time.Minute {
		t.Errorf("4 MB at depth 9,800 took %v", d)
	}
}

func FuzzCanonicalJSON(f *testing.F) {
	for _, in := range []string{`{"b":1,"a":"\u00e9\ud83d\ude00"}`, `[1,-0,1.5e3,{"a":{"":null}}]`, `{"a":1,"a":2}`, "\"\u2028<>&\x7f\""} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		once, err := CanonicalJSON(in)
		if err != nil {
			return
		}
		twice, err := CanonicalJSON(once)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("canonical form is not stable: %q then %q (%v)", once, twice, err)
		}
		// Where Go's own JSON library keeps numbers, it must see the same value.
		var a, b any
		for i, text := range [][]byte{in, once} {
			d := json.NewDecoder(bytes.NewReader(text))
			d.UseNumber()
			if err := d.Decode([]*any{&a, &b}[i]); err != nil {
				t.Fatal(err)
			}
		}
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		if !bytes.Equal(bytes.ReplaceAll(x, []byte("-0"), []byte("0")), bytes.ReplaceAll(y, []byte("-0"), []byte("0"))) {
			t.Fatalf("%q became %q: another value", x, y)
		}
	})
}

func TestCanonicalJSONAgreesWithTheOtherLibrary(t *testing.T) {
	for _, in := range [][]byte{transactionBody(), []byte(`{"z":[{"b":1,"a":[]}],"a":"\n\u00e9","é":{"y":-5,"x":null}}`)} {
		ours, err := CanonicalJSON(in)
		must(t, err)
		theirs, err := gomatrixserverlib.CanonicalJSON(in)
		must(t, err)
		if !bytes.Equal(ours, theirs) {
			t.Errorf("%s\nand %s", ours, theirs)
		}
	}
}

// A body of very many small values takes little more memory than itself, before anybody has checked who sends it.
func TestManySmallValuesTakeLittleMemory(t *testing.T) {
	for _, piece := range []string{"0", "{}", "[]", `"a"`, "-0", " 0 ", `"\u0061"`, "[0,0]"} {
		in := []byte(`{"b":[` + strings.TrimSuffix(strings.Repeat(piece+",", (1<<20)/(len(piece)+1)), ",") + `],"a":0}`)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := CanonicalJSON(in); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 24<<20 {
			t.Errorf("1 MiB of %q takes %d MiB", piece, n>>20)
		}
	}
}

func BenchmarkCanonicalJSON(b *testing.B) {
	in := transactionBody()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := CanonicalJSON(in); err != nil {
			b.Fatal(err)
		}
	}
}
