package config

import (
	"bytes"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// Print writes the sample file: every key with its default and what it is for.
func Print(w io.Writer) error {
	var b bytes.Buffer
	b.WriteString("# The configuration of Chancery. Every key is shown with its default; a file needs only\n" +
		"# those that differ. Each key is also an environment variable: CHANCERY_ and its path in\n" +
		"# capitals, joined by _ (CHANCERY_CLIENT_LISTEN); lists there are separated by commas.\n" +
		"# Relative paths are relative to this file.\n")
	printStruct(&b, reflect.ValueOf(Default()).Elem(), "")
	_, err := w.Write(b.Bytes())
	return err
}

func printStruct(b *bytes.Buffer, v reflect.Value, indent string) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if indent == "" {
			b.WriteByte('\n')
		}
		if doc := f.Tag.Get("doc"); doc != "" {
			for _, line := range strings.Split(doc, "\n") {
				fmt.Fprintf(b, "%s# %s\n", indent, line)
			}
		}
		name := f.Tag.Get("yaml")
		if f.Type.Kind() == reflect.Struct {
			fmt.Fprintf(b, "%s%s:\n", indent, name)
			printStruct(b, v.Field(i), indent+"  ")
			continue
		}
		value := v.Field(i)
		if f.Tag.Get("path") == "true" && value.Kind() == reflect.String {
			value = reflect.ValueOf(f.Tag.Get("default")) // not as resolved
		}
		fmt.Fprintf(b, "%s%s: %s\n", indent, name, yamlValue(value))
	}
}

func yamlValue(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Slice:
		items := make([]string, v.Len())
		for i := range items {
			items[i] = yamlValue(v.Index(i))
		}
		return "[" + strings.Join(items, ", ") + "]"
	case reflect.String:
		s := v.String()
		if plainWord(s) {
			return s
		}
		return fmt.Sprintf("%q", s)
	}
	return show(v)
}

// plainWord says whether YAML reads the word as a text without quotes.
func plainWord(s string) bool {
	if s == "" || s == "true" || s == "false" || s == "null" || strings.ContainsAny(s, ":#{}[],&*!|>'\"%@` ") {
		return false
	}
	return s[0] == '.' || s[0] >= 'a' && s[0] <= 'z' || s[0] >= 'A' && s[0] <= 'Z'
}
