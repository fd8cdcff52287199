package peer

import "testing"

// What is read of a signed object is what is signed.
func TestNamesMatchExactly(t *testing.T) {
	var v struct {
		Keys map[string]string `json:"keys"`
		Name string            `json:"name"`
	}
	if err := Decode([]byte(`{"name":"no","KEYS":{"a":"false"},"keys":{"a":"true"},"Keys":{"b":"false"},"name":"yes","Name":"no"}`), &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Keys) != 1 || v.Keys["a"] != "true" || v.Name != "yes" {
		t.Errorf("%+v", v)
	}
}
