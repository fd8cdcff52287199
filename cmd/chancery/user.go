package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"chancery/cmd/chancery/operator"
)

func runUser(ctx context.Context, args []string, t terminal) error {
	flags := flag.NewFlagSet("user create", flag.ContinueOnError)
	var from configFlags
	from.add(flags)
	admin := flags.Bool("admin", false, "")
	words, err := parse(flags, args)
	if err != nil {
		return err
	}
	if len(words) != 2 || words[0] != "create" {
		return badUsage("usage: chancery user create NAME [--admin] [--config FILE] [--data DIR] [--server-name NAME]")
	}
	cfg, err := from.load(t)
	if err != nil {
		return err
	}
	password, err := readPassword(t)
	if err != nil {
		return err
	}
	user, begun, err := operator.CreateUser(ctx, cfg, version, operator.NewUser{Name: words[1], Password: password, Admin: *admin})
	if err != nil {
		return fmt.Errorf("no account was made: %w", err)
	}
	if begun {
		fmt.Fprintf(t.err, "No server has run on %s yet: a new database was begun. --config, --data and --server-name must be as for serve.\n", cfg.DataDir)
	}
	fmt.Fprintf(t.out, "%s can sign in now\n", user)
	return nil
}

// readPassword asks twice on a terminal and reads one line from anything else.
func readPassword(t terminal) (string, error) {
	file, ok := t.in.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		line, err := bufio.NewReader(t.in).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read the password: %w", err)
		}
		return checkPassword(strings.TrimRight(line, "\r\n"))
	}
	first, err := ask(file, t.err, "Password: ")
	if err != nil {
		return "", err
	}
	second, err := ask(file, t.err, "The same again: ")
	if err != nil {
		return "", err
	}
	if first != second {
		return "", errors.New("the two passwords differ")
	}
	return checkPassword(first)
}

func ask(file *os.File, w io.Writer, prompt string) (string, error) {
	fmt.Fprint(w, prompt)
	text, err := term.ReadPassword(int(file.Fd()))
	fmt.Fprintln(w)
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	return string(text), nil
}

func checkPassword(s string) (string, error) {
	if s == "" {
		return "", errors.New("the password is empty")
	}
	return s, nil
}
