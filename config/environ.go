package config

import (
	"reflect"
	"strings"
)

// Misspelt lists environment variables that are no key but nearly one, each with the key it may have meant.
// Others that begin with CHANCERY_ are let be: Kubernetes sets such for a service of that name.
func Misspelt(environ []string) []string {
	var keys, misspelt []string
	walk(reflect.ValueOf(&Config{}).Elem(), "", func(k key) { keys = append(keys, env(k.path)) })
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, "CHANCERY_") {
			continue
		}
		best, distance := "", 3
		for _, k := range keys {
			if d := editDistance(name, k); d < distance {
				best, distance = k, d
			}
		}
		if distance > 0 && best != "" {
			misspelt = append(misspelt, name+" is no setting; did you mean "+best+"?")
		}
	}
	return misspelt
}
