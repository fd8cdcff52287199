package sqltest

import "syscall"

// attributes end the server with the test binary, also when that panics or is killed. SIGQUIT
// is an immediate shutdown: nothing of it is kept.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT, Setpgid: true}
}
