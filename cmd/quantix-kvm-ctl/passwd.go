package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/quantix-kvm/guest-agent/cmd/internal/scriptreport"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) passwdCommand() *cobra.Command {
	request := &pb.ResetPasswordRequest{}
	c := &cobra.Command{
		Use:   "passwd [--expire] [--crypted] USER",
		Short: "set the password of a user of the guest",
		Long: `passwd sets the password of a local user of the guest. It asks for it twice at the terminal, where it is not seen, or else
reads one line of standard input. There is no flag for it: a command line is seen by every user of this host.

With --expire the user must choose another one at the next login. With --crypted the line is not the password but what crypt(3)
makes of it, such as openssl passwd -6 prints, or ! for none that fits.

With --json: the reply, whose must_change says whether another password must be chosen, as the guest has it stored.

EXIT STATUS
  0  it is set
  1  there is no such user, or what was given is no password
  4  refused, or not supported`,
		Example: `  quantix-kvm-ctl passwd root
  quantix-kvm-ctl passwd --expire deploy <password-file
  openssl passwd -6 | quantix-kvm-ctl passwd --crypted deploy`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(false, userNames),
		RunE: func(c *cobra.Command, args []string) (err error) {
			request.Username = args[0]
			if request.NewPassword, err = a.newPassword(c.Context(), args[0]); err != nil {
				return err
			}
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				reply, err := s.ResetPassword(s.ctx, request)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(reply)
				}
				if reply.MustChange {
					a.note("%s must choose another password at the next login", args[0])
				}
				return nil
			})
		},
	}
	c.Flags().BoolVar(&request.Expire, "expire", false, "have the user choose another password at the next login")
	c.Flags().BoolVar(&request.Crypted, "crypted", false, "take a hash as crypt(3) makes it in place of the password")
	return c
}

// newPassword reads a password: twice at a terminal, or else one line, which must be all of the input.
func (a *app) newPassword(ctx context.Context, user string) (string, error) {
	if !isTerminal(a.stdin) {
		line, err := scriptreport.ReadLine(a.stdin)
		if err != nil {
			return "", fmt.Errorf("read standard input: %w", err)
		}
		if _, err := a.stdin.Read(make([]byte, 1)); err == nil {
			return "", usage("standard input has more than one line")
		}
		return line, nil
	}
	first, err := a.askPassword(ctx, "New password for "+printable(user))
	if err != nil {
		return "", err
	}
	second, err := a.askPassword(ctx, "Once more")
	if err == nil && first != second {
		err = usage("the two are not the same")
	}
	return first, err
}

// askPassword reads a line at the terminal, which does not show it. An interrupt leaves the terminal as it was.
func (a *app) askPassword(ctx context.Context, prompt string) (string, error) {
	type answer struct {
		text []byte
		err  error
	}
	fd := int(a.stdin.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(a.stderr, "%s: ", prompt)
	defer fmt.Fprintln(a.stderr)
	typed := make(chan answer, 1)
	go func() { // it ends with the program where nothing is typed any more
		text, err := term.ReadPassword(fd)
		typed <- answer{text, err}
	}()
	select {
	case got := <-typed:
		return string(got.text), got.err
	case <-ctx.Done():
		_ = term.Restore(fd, before)
		return "", ctx.Err()
	}
}

// maxCompleted is the most bytes of /etc/passwd that completion reads.
const maxCompleted = 1 << 20

// userNames returns the names of the users of the guest, as completions.
func userNames(s *session) (words []string, err error) {
	var passwd bytes.Buffer
	_, err = s.Pull(s.ctx, "/etc/passwd", &limited{&passwd, maxCompleted}, client.PullOptions{})
	for line := range strings.Lines(passwd.String()) {
		if name, rest, ok := strings.Cut(line, ":"); ok && !strings.ContainsAny(name, "+-#") {
			if fields := strings.Split(rest, ":"); len(fields) > 3 && fields[3] != "" {
				name += "\t" + printable(fields[3])
			}
			words = append(words, name)
		}
	}
	return words, err
}

// limited is a buffer that takes no more than so many bytes.
type limited struct {
	to   *bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > l.left {
		return 0, fmt.Errorf("more than %d bytes", maxCompleted)
	}
	l.left -= len(p)
	return l.to.Write(p)
}
