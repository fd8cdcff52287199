package main

import (
	"errors"
	"flag"
	"fmt"
	"strings"

	"chancery/config"
)

// configFlags are the flags by which a verb finds its configuration.
type configFlags struct {
	file, data, serverName string
}

func (c *configFlags) add(flags *flag.FlagSet) {
	flags.StringVar(&c.file, "config", "", "")
	flags.StringVar(&c.data, "data", "", "")
	flags.StringVar(&c.serverName, "server-name", "", "")
}

// String gives the flags again, for another verb to find the same configuration.
func (c configFlags) String() string {
	var text strings.Builder
	for _, f := range []struct{ name, value string }{{"config", c.file}, {"data", c.data}, {"server-name", c.serverName}} {
		if f.value != "" {
			fmt.Fprintf(&text, " --%s %s", f.name, f.value)
		}
	}
	return text.String()
}

func (c *configFlags) load(t terminal) (*config.Config, error) {
	src := config.Source{File: c.file, Environ: t.environ, Flags: map[string]string{}}
	if c.data != "" {
		src.Flags["data_dir"] = c.data
	}
	if c.serverName != "" {
		src.Flags["server_name"] = c.serverName
	}
	cfg, err := config.Load(src)
	return cfg, faulty(err)
}

// faulty makes the faults of a configuration an error of usage.
func faulty(err error) error {
	var faults config.Faults
	if errors.As(err, &faults) {
		return usageError{faults.Error()}
	}
	return err
}

func runConfig(args []string, t terminal) error {
	words, err := parse(flag.NewFlagSet("config", flag.ContinueOnError), args)
	if err != nil {
		return err
	}
	switch {
	case len(words) == 1 && words[0] == "print":
		return config.Print(t.out)
	case len(words) == 2 && words[0] == "check":
		if err := config.Check(words[1]); err != nil {
			return faulty(err)
		}
		fmt.Fprintf(t.out, "%s is good\n", words[1])
		return nil
	}
	return badUsage("usage: chancery config print | chancery config check FILE")
}
