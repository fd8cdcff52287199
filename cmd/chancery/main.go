// Command chancery is a Matrix homeserver in one binary: the server itself and the verbs of
// its operator.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

const usage = `Chancery is a Matrix homeserver.

  chancery serve [--config FILE] [--data DIR] [--server-name NAME] [--only clientapi,syncapi,...]
        run the server
  chancery config print
        print a documented sample of the configuration, every key with its default
  chancery config check FILE
        say everything that is wrong with a configuration
  chancery user create NAME [--admin] [--config FILE] [--data DIR] [--server-name NAME]
        make an account; the password is asked for, or read from standard input
  chancery room explain ROOM EVENT [--json]
        say how an event was judged, and how the room's state was resolved around it
  chancery room rebuild-state ROOM [--apply] [--json]
        resolve the room's state again from its events, and show what differs from what is stored
  chancery version
        print the version
`

// Exit codes, part of the contract with scripts.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a command line or a configuration that cannot be what was meant.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func badUsage(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// terminal is where a verb reads and writes.
type terminal struct {
	in       io.Reader
	out, err io.Writer
	environ  []string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], terminal{os.Stdin, os.Stdout, os.Stderr, os.Environ()}))
}

// run is main with everything it touches given to it.
func run(ctx context.Context, args []string, t terminal) int {
	err := dispatch(ctx, args, t)
	var bad usageError
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(t.out, usage)
		return exitDone
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(t.err, "chancery: stopped before it was done")
		return exitFailed
	case errors.As(err, &bad):
		fmt.Fprintln(t.err, bad.text)
		return exitUsage
	}
	fmt.Fprintf(t.err, "chancery: %s\n", sentence(err))
	return exitFailed
}

// sentence is an error in one line: libraries tell of each address that they tried, in lines of their own.
func sentence(err error) string {
	first, rest, _ := strings.Cut(err.Error(), "\n")
	var told []string
	for line := range strings.SplitSeq(rest, "\n") {
		if line = strings.TrimSpace(line); line != "" && !slices.Contains(told, line) {
			told = append(told, line)
		}
	}
	if len(told) == 0 {
		return first
	}
	return first + " " + strings.Join(told, ", ")
}

func dispatch(ctx context.Context, args []string, t terminal) error {
	if len(args) == 0 {
		return badUsage("%s", strings.TrimSuffix(usage, "\n"))
	}
	verb, rest := args[0], args[1:]
	switch verb {
	case "serve":
		return runServe(ctx, rest, t)
	case "config":
		return runConfig(rest, t)
	case "user":
		return runUser(ctx, rest, t)
	case "room":
		return runRoom(ctx, rest, t)
	case "version", "--version":
		return runVersion(rest, t)
	case "help", "-h", "--help":
		return flag.ErrHelp
	}
	return badUsage("chancery: there is no verb %q; try chancery help", verb)
}

// parse reads flags wherever they stand between the words, and gives the words.
func parse(flags *flag.FlagSet, args []string) ([]string, error) {
	flags.SetOutput(io.Discard)
	var words []string
	for {
		if err := flags.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, badUsage("chancery %s: %s", flags.Name(), err)
		}
		args = flags.Args()
		if len(args) == 0 {
			return words, nil
		}
		words, args = append(words, args[0]), args[1:]
	}
}
