package auth

import (
	_ "embed"
	"slices"
	"strconv"
	"strings"
	"sync"

	"chancery/roomserver/event"
)

// Said is what one rule said of an event.
type Said struct {
	Rule string `json:"rule"`           // the number as in the rendered list of the room's version
	Says string `json:"says"`           // allows, rejects, or "goes on" where it does not decide
	Text string `json:"text,omitempty"` // the rule as the specification has it
	Why  string `json:"why,omitempty"`  // of a rejection, in our words
}

// Explain is Check for those who want to know what each rule says, in the order in which they were asked: the
// last one has decided.
//
// spec: rooms/v12#authorisation-rules
func Explain(ev *event.Event, state State) ([]Said, error) {
	t := &telling{version: ev.Version().Name}
	err := ask(&question{ev: ev, v: ev.Version(), state: state, create: state.Get("m.room.create", ""), told: t})
	return t.said(), err
}

// telling collects what rules say while they are asked.
type telling struct {
	version string
	at      []string // the numbers of the rules that are being asked, from the outside in
	list    []Said
}

// begin notes that a rule is asked, and gives its place.
func (t *telling) begin(number int) int {
	if t == nil {
		return 0
	}
	t.at = append(t.at, strconv.Itoa(number))
	t.list = append(t.list, Said{Rule: strings.Join(t.at, ".")})
	return len(t.list) - 1
}

// end notes what the rule said. One that has others below it says what they say: it is left out.
func (t *telling) end(place int, a answer) {
	if t == nil {
		return
	}
	t.at = t.at[:len(t.at)-1]
	said := &t.list[place]
	switch a.verdict {
	case goesOn:
		said.Says = "goes on"
	case allows:
		said.Says = "allows"
	case rejects:
		said.Says, said.Why = "rejects", a.why
		if place == len(t.list)-1 && a.rule != "" { // it is part of one function
			said.Rule += "." + a.rule
		}
	}
}

func (t *telling) said() []Said {
	list := slices.Clone(t.list)
	for i := range list {
		list[i].Text = RuleText(t.version, list[i].Rule)
	}
	// Where one line of the specification is two functions of ours, the line says what they say.
	list = slices.DeleteFunc(list, func(s Said) bool { return s.Text == "" && strings.Contains(s.Rule, ".") })
	for i := range list {
		below := i+1 < len(list) && strings.HasPrefix(list[i+1].Rule, list[i].Rule+".")
		if below && list[i].Says != "goes on" {
			list[i].Says, list[i].Why = "applies", ""
		}
	}
	return list
}

//go:embed rules.txt
var rulesText string

var ruleTexts = sync.OnceValue(func() map[[2]string]string {
	texts := map[[2]string]string{}
	for line := range strings.Lines(rulesText) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3)
		if len(fields) < 3 {
			continue // a comment
		}
		for _, version := range strings.Split(fields[1], ",") {
			texts[[2]string{version, fields[0]}] = fields[2]
		}
	}
	return texts
})

// RuleText is an authorisation rule of a room version as the specification has it; "" when there is no such rule.
func RuleText(version, number string) string { return ruleTexts()[[2]string{version, number}] }
