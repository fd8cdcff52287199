package event

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// spec: appendices#canonical-json, the examples in their order
func TestCanonicalJSONExamplesOfTheSpec(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{}`, `{}`},
		{"{\n    \"one\": 1,\n    \"two\": \"Two\"\n}", `{"one":1,"two":"Two"}`},
		{`{ "b": "2", "a": "1" }`, `{"a":"1","b":"2"}`},
		{`{"b":"2","a":"1"}`, `{"a":"1","b":"2"}`},
		{`{ "auth": { "success": true, "mxid": "@john.doe:example.com", "profile": { "display_name": "John Doe",
			"three_pids": [ { "medium": "email", "address": "john.doe@example.org" },
			{ "medium": "msisdn", "address": "123456789" } ] } } }`,
			`{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"success":true}}`},
		{`{ "a": "日本語" }`, `{"a":"日本語"}`},
		{`{ "本": 2, "日": 1 }`, `{"日":1,"本":2}`},
		{`{ "a": "\u65E5" }`, `{"a":"日"}`},
		{`{ "a": null }`, `{"a":null}`},
	} {
		for name, f := range map[string]func([]byte) ([]byte, error){"strict": Canonical, "lenient": CanonicalLenient} {
			got, err := f([]byte(c.in))
			if err != nil || string(got) != c.want {
				t.Errorf("%s: %s became %s (%v), want %s", name, c.in, got, err, c.want)
			}
		}
	}
	// The last example has numbers that are no canonical JSON themselves. Where nothing is
	// enforced they are converted; from version 6 on they are refused.
	// spec: rooms/v6#canonical-json
	last := []byte(`{ "a": -0, "b": 1e10 }`)
	if got, err := CanonicalLenient(last); err != nil || string(got) != `{"a":0,"b":10000000000}` {
		t.Errorf("lenient: got %s, %v", got, err)
	}
	if got, err := Canonical(last); err == nil {
		t.Errorf("strict: got %s, want a refusal", got)
	}
}

func TestCanonicalJSONForms(t *testing.T) {
	for _, c := range []struct{ in, strict, lenient string }{ // "" is a refusal
		{`"\u0000\u0001\u001f\u007f\b\t\n\f\r\u0008\u0009\u000a\u000C\u000d"`,
			"\"\\u0000\\u0001\\u001f\x7f\\b\\t\\n\\f\\r\\b\\t\\n\\f\\r\"", "="},
		{`"\/\"\\\u0022\u005c\u002f"`, `"/\"\\\"\\/"`, "="},
		{`"\ud83d\ude00"`, `"😀"`, "="},
		{`"\ud83d"`, "", ""},                          // lone high surrogate
		{`"\ude00"`, "", ""},                          // lone low surrogate
		{`"\ud83d\u0041"`, "", ""},                    // high without low
		{"\"\xff\"", "", ""},                          // no UTF-8
		{"\"\xed\xa0\x80\"", "", ""},                  // a surrogate in UTF-8
		{"\"\xc0\x80\"", "", ""},                      // an overlong NUL
		{"\"a\nb\"", "", ""},                          // a raw control character
		{`{"a":1,"a":2}`, "", ""},                     // duplicate key
		{`{"b":1,"a":1,"b":2}`, "", ""},               // duplicate, not adjacent
		{`{"a":1,"\u0061":2}`, "", ""},                // duplicate after decoding
		{`{"x":{"a":1,"a":1}}`, "", ""},               // deeper
		{`{"a\n":1,"a ":2}`, `{"a\n":1,"a ":2}`, "="}, // order of characters, not of escapes
		{`{"a\"":1,"a#":2,"a!":3}`, `{"a!":3,"a\"":1,"a#":2}`, "="},
		{"{\"é\":1,\"z\":2,\"😀\":3,\"\ufb01\":4}", "{\"z\":2,\"é\":1,\"\ufb01\":4,\"😀\":3}", "="}, // code points, not UTF-16
		{`9007199254740991`, `9007199254740991`, "="},
		{`-9007199254740991`, `-9007199254740991`, "="},
		{`9007199254740992`, "", `9007199254740992`},
		{`-9007199254740992`, "", `-9007199254740992`},
		{`123456789012345678901234567890`, "", `123456789012345678901234567890`},
		{`1.0`, "", `1.0`},
		{`0.0`, "", `0.0`},
		{`-0`, "", `0`},
		{`-0e0`, "", `0`},
		{`1E3`, "", `1000`},
		{`1.5e1`, "", `15`},
		{`150e-1`, "", `15`},
		{`-12.50e1`, "", `-125`},
		{`1.5e0`, "", `1.5e0`},
		{`1e-400000`, "", `1e-400000`},
		{`1e16`, "", `1e16`},
		{`01`, "", ""}, {`-`, "", ""}, {`1.`, "", ""}, {`.5`, "", ""}, {`+1`, "", ""}, {`1e`, "", ""}, {`0x1`, "", ""},
		{`NaN`, "", ""}, {`tru`, "", ""}, {`nulll`, "", ""}, {`{} {}`, "", ""}, {``, "", ""}, {` `, "", ""},
		{`{"a":1,}`, "", ""}, {`[1,]`, "", ""}, {`[,1]`, "", ""}, {`{,}`, "", ""}, {`{"a"}`, "", ""}, {`{a:1}`, "", ""},
		{`[1 2]`, "", ""}, {`{"a":1 "b":2}`, "", ""}, {`"abc`, "", ""}, {`"\`, "", ""}, {`"\x"`, "", ""}, {`"\u12"`, "", ""},
		{"\xef\xbb\xbf{}", "", ""}, // byte order mark
		{" \t\r\n[ 1 , true , false , null , \"x\" , { } , [ ] ] ", `[1,true,false,null,"x",{},[]]`, "="},
		{strings.Repeat("[", 1000) + strings.Repeat("]", 1000), strings.Repeat("[", 1000) + strings.Repeat("]", 1000), "="},
		{strings.Repeat("[", 1001) + strings.Repeat("]", 1001), "", ""},
		{strings.Repeat(`{"a":`, 1001) + "1" + strings.Repeat("}", 1001), "", ""},
		{strings.Repeat("[", 1000000), "", ""},
	} {
		if c.lenient == "=" {
			c.lenient = c.strict
		}
		for _, mode := range []struct {
			name string
			f    func([]byte) ([]byte, error)
			want string
		}{{"strict", Canonical, c.strict}, {"lenient", CanonicalLenient, c.lenient}} {
			got, err := mode.f([]byte(c.in))
			if mode.want == "" && err == nil || mode.want != "" && (err != nil || string(got) != mode.want) {
				t.Errorf("%s: %.60q became %.60q (%v), want %.60q", mode.name, c.in, got, err, mode.want)
			}
		}
	}
}

func TestAppendStringIsCanonical(t *testing.T) {
	var all []byte
	for r := rune(0); r < 0x2100; r++ {
		all = appendRune(all, r)
	}
	for _, s := range []string{"", "a", "\x00\x1f\"\\/\x7f", "é日😀", unescape(all), "\xff"} {
		quoted, _ := json.Marshal(s)
		want, err := Canonical(quoted)
		if err != nil {
			t.Fatal(err)
		}
		if got := appendString(nil, s); !bytes.Equal(got, want) {
			t.Errorf("%q became %s, want %s", s, got, want)
		}
	}
}

func FuzzCanonicalJSON(f *testing.F) {
	for _, s := range []string{`{"b":1,"a":"\u00e9"}`, `{"a":{"c":[1,2,{}],"b":null},"\n":-1}`, `"\ud83d\ude00"`, `{"a":1e10,"b":-0}`,
		`{"b":{"z":1,"y":[{"q":1,"p":2}]},"a":[]}`, `[[[]]]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, canonical := range []func([]byte) ([]byte, error){Canonical, CanonicalLenient} {
			once, err := canonical(in)
			if err != nil {
				continue
			}
			twice, err := canonical(once)
			if err != nil || !bytes.Equal(once, twice) {
				t.Fatalf("canonical form is not stable: %q then %q (%v)", once, twice, err)
			}
			if !json.Valid(in) || !json.Valid(once) {
				t.Fatalf("accepted %q, which is no JSON, as %q", in, once)
			}
			var x, y any
			if json.Unmarshal(in, &x) == nil {
				if err := json.Unmarshal(once, &y); err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(x, y) {
					t.Fatalf("%q changed its meaning: %q", in, once)
				}
			}
		}
		if once, err := Canonical(in); err == nil {
			if o, err := members(once, nil); err == nil && !bytes.Equal(o.append(nil), once) {
				t.Fatalf("taken apart and put together, %q is %q", once, o.append(nil))
			}
		}
	})
}
