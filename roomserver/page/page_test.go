package page

import (
	"testing"

	"chancery"
)

func TestTokensAreReadAsWritten(t *testing.T) {
	for _, s := range []Sync{
		{Epoch: 1, Pos: 2},
		{Epoch: 1763000000, Pos: 1763000000123456, ToDevice: 1763000000123400},
		{Epoch: 1, Pos: 20, ToDevice: 3, Process: "aZ9", Typing: 4, Presence: 5},
		{Epoch: 1, Pos: 0, Process: "x"},
	} {
		got, err := Parse(s.String())
		if err != nil || got.Room || got.Sync != s {
			t.Errorf("%s is read as %+v (%v), want %+v", s, got, err, s)
		}
	}
	for _, ord := range []int64{0, 7, 1 << 40, -3} {
		got, err := Parse(Before(ord))
		if err != nil || !got.Room || got.Ord != ord {
			t.Errorf("%s is read as %+v (%v)", Before(ord), got, err)
		}
	}
	if After(7) != Before(8) {
		t.Errorf("above 7 is %s, below 8 is %s", After(7), Before(8))
	}
}

func TestWrongTokensAreRefused(t *testing.T) {
	for _, text := range []string{"", "s", "t", "x1", "s1", "s_", "s1_", "s1_-2", "s1_+2", "s01_2", "s1_2_", "s1_2_d", "s1_2_d0",
		"s1_2_pq", "s1_2_pq.1", "s1_2_pq.1.2.3", "s1_2_p.1.2", "s1_2_pq.1.2_d1", "s1_2_d1_d1", "t1.5", "t--1", "t-0", "t 1",
		"s1_99999999999999999999", "s1_2_x", "s1_2\x00", "s٣_2"} {
		if got, err := Parse(text); !chancery.IsCode(err, chancery.CodeInvalidParam) {
			t.Errorf("%q is read as %+v (%v), want M_INVALID_PARAM", text, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"t12", "t-5", "s1_2", "s1_20_d3_paz.4.5", "s1_2_pq.1.2"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Parse(text)
		if err != nil {
			return
		}
		again := got.Sync.String()
		if got.Room {
			again = Before(got.Ord)
		}
		if again != text {
			t.Fatalf("%q is read and written again as %q", text, again)
		}
	})
}
