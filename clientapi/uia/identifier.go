package uia

import "chancery"

// Identifier names a user who signs in.
//
// spec: c2s#identifier-types
type Identifier struct {
	Type    string `json:"type"`
	User    string `json:"user"`
	Medium  string `json:"medium"`
	Address string `json:"address"`
	Country string `json:"country"`
	Phone   string `json:"phone"`
	Number  string `json:"number"` // what clients of before r0.5 call phone
}

// Name is the user ID or localpart that an identifier gives. No account here has a
// third-party identifier, so one of those is unknown.
func (i Identifier) Name() (string, error) {
	switch i.Type {
	case "m.id.user":
		if i.User == "" {
			return "", chancery.MissingParam("identifier.user is missing")
		}
		return i.User, nil
	case "m.id.thirdparty":
		if i.Medium == "" || i.Address == "" {
			return "", chancery.MissingParam("identifier needs medium and address")
		}
		return "", errUnknownIdentifier
	case "m.id.phone":
		if i.Country == "" || (i.Phone == "" && i.Number == "") {
			return "", chancery.MissingParam("identifier needs country and phone")
		}
		return "", errUnknownIdentifier
	case "":
		return "", chancery.MissingParam("identifier.type is missing")
	}
	return "", chancery.InvalidParam("there is no such type of identifier")
}

// The same as for a wrong password: it tells nothing of who is there.
var errUnknownIdentifier = chancery.Forbidden("wrong user name or password")
