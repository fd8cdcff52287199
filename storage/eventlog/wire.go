package eventlog

import (
	"encoding/json"
	"fmt"
	"slices"

	"chancery/storage/sql"
)

// maxMessage keeps a message far below NATS' limit of 1 MiB, headers included.
const maxMessage = 512 << 10

// encode writes facts as JSON arrays of at most limit bytes each. A single fact that is larger
// is left out: readers miss its position and take it from SQL.
func encode(facts []sql.Fact, limit int) (messages [][]byte, tooLarge int) {
	var b []byte
	flush := func() {
		if len(b) > 0 {
			messages = append(messages, append(b, ']'))
			b = nil
		}
	}
	for _, f := range facts {
		one, err := json.Marshal(f)
		if err != nil || len(one)+2 > limit {
			tooLarge++
			continue
		}
		if len(b)+1+len(one)+1 > limit {
			flush()
		}
		if b == nil {
			b = slices.Grow(b, min(limit, (len(one)+16)*len(facts)))
			b = append(b, '[')
		} else {
			b = append(b, ',')
		}
		b = append(b, one...)
	}
	flush()
	return messages, tooLarge
}

func decode(message []byte) ([]sql.Fact, error) {
	var facts []sql.Fact
	if err := json.Unmarshal(message, &facts); err != nil {
		return nil, fmt.Errorf("decode facts: %w", err)
	}
	return facts, nil
}
